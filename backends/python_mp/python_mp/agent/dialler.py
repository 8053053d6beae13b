"""Connects an agent to the exchange, again and again."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
import time
from pathlib import Path

from ..model.errors import describe
from . import handshake
from .fetching import Room
from .forkservers import Forkservers
from .handshake import Refused
from .host import Connected
from .link import Link, LinkError
from .versions import versions

log = logging.getLogger("agent")

_DIAL_SECONDS = 1.0
_PAUSES = (0.1, 0.2, 0.4)
"""Seconds between two tries of an exchange that cannot be reached: it may be back at any moment."""
_REFUSED_PAUSES = (1.0, 2.0, 5.0)
"""Of one that refuses, or whose connection ends at once."""
_LASTED_SECONDS = 5.0


class Dialler:
    """Connects, again and again.

    Args:
        name: this host's.
        address: the exchange's.
        runtime: a private folder.
        leave_after: seconds without an exchange until it gives up.
    """

    def __init__(
        self,
        name: str,
        address: tuple[str, int],
        token: bytes,
        encryption: ssl.SSLContext | None,
        runtime: Path,
        room: Room,
        leave_after: float = math.inf,
    ) -> None:
        self._address = address
        self._name = name
        self._token = token
        self._encryption = encryption
        self._runtime = runtime
        self._room = room
        self._forkservers = Forkservers()
        self._said = ""
        self._leave_after = leave_after
        self._connected = time.monotonic()
        """Now, or last."""

    async def run(self) -> None:
        """Until it gives up."""
        unreached = refused = 0
        try:
            while time.monotonic() - self._connected < self._leave_after:
                began = time.monotonic()
                try:
                    why = await self._serve()
                    unreached = 0
                    refused = 0 if time.monotonic() - began > _LASTED_SECONDS else refused + 1
                    self._say(why)
                except OSError as error:
                    unreached += 1
                    why = describe(error) if str(error) else "it does not answer in time"
                    self._say(f"the exchange cannot be reached: {why}")
                except (Refused, LinkError) as error:
                    refused += 1
                    self._say(f"the exchange refuses this agent: {describe(error)}")
                await asyncio.sleep(_pause(unreached, refused))
            log.warning("there is no exchange for %g s; it leaves", self._leave_after)
        finally:
            self._forkservers.close()

    async def _serve(self) -> str:
        host, port = self._address
        async with asyncio.timeout(_DIAL_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=self._encryption)
        link = Link(reader, writer)
        try:
            async with asyncio.timeout(handshake.SECONDS):
                greeted = await handshake.greet(link, self._token, self._name, versions())
            log.info("connected to %s:%d as %s", host, port, self._name)
            self._said = ""
            connected = Connected(link, greeted.lease, self._runtime, self._room, self._forkservers)
            try:
                return await connected.serve()
            finally:
                self._connected = time.monotonic()
        finally:
            link.close()

    def _say(self, text: str) -> None:
        """Once, as long as it is the same."""
        if text != self._said:
            log.warning("%s; it is tried again", text)
        self._said = text


def _pause(unreached: int, refused: int) -> float:
    pauses, count = (_REFUSED_PAUSES, refused) if refused else (_PAUSES, unreached)
    seconds = pauses[min(count, len(pauses)) - 1] if count else pauses[0]
    return seconds * random.uniform(0.8, 1.2)
