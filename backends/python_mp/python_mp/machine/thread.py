"""Threads whose `start` comes to an end.

CPython's waits for ever for a thread that finds no memory for its first frame, and so never says
that it has started.
"""

from __future__ import annotations

import threading
from typing import Any

START_SECONDS = 3.0
"""It takes less than a millisecond; with far too much to do some tenths of a second."""


class Thread(threading.Thread):
    """`start` raises RuntimeError where there is no thread to be had, or no memory for it."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._started = _Started()


class _Started(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        if not super().wait(START_SECONDS if timeout is None else timeout):
            raise RuntimeError("a new thread has found no memory")
        return True
