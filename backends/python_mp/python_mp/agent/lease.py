"""Both sides speak each second; who hears nothing for the lease takes the other one for lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .link import Link

PULSE_SECONDS = 1.0


async def keep(link: Link, seconds: float, pulse: Callable[[], None]) -> None:
    """Calls `pulse` again and again; once nothing was heard for so long the link is closed.

    For how long this process itself could not listen, because it was stopped or given no processor,
    does not count: what the other side said meanwhile is still to be read.
    """
    interval = min(PULSE_SECONDS, seconds / 4)
    try:
        while link.silence < seconds:
            pulse()
            began = time.monotonic()
            await asyncio.sleep(interval)
            now = time.monotonic()
            link.heard = min(now, link.heard + now - began - interval)
    finally:  # Also if `pulse` raises: without it nobody would notice that a link is cut.
        link.close()
