"""Connects an agent to the exchange, again and again."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
import time
from pathlib import Path

from ..machine.backoff import after
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
        leave_after: seconds without a word of an exchange until it gives up; or only the lease,
            where a host answers that there is none.
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
        self._leave_after = self._lease = leave_after
        self._heard = time.monotonic()
        """Of an exchange, last."""
        self._is_gone = False
        """Its host has nobody who listens. From beyond a link that is cut, nothing would come."""

    async def run(self) -> bool:
        """Until it gives up; whether that is since there is no exchange any more."""
        unreached = refused = 0
        try:
            while time.monotonic() - self._heard < self._patience:
                began = time.monotonic()
                try:
                    why = await self._serve()
                    unreached = 0
                    refused = 0 if time.monotonic() - began > _LASTED_SECONDS else refused + 1
                    self._say(why)
                except OSError as error:
                    self._is_gone = isinstance(error, ConnectionRefusedError)
                    unreached += 1
                    why = describe(error) if str(error) else "it does not answer in time"
                    self._say(f"the exchange cannot be reached: {why}")
                except (Refused, LinkError) as error:
                    refused += 1
                    self._say(f"the exchange refuses this agent: {describe(error)}")
                await asyncio.sleep(_pause(unreached, refused))
            log.warning("there is no exchange for %g s; it leaves", self._patience)
            return self._is_gone
        finally:
            self._forkservers.close()

    @property
    def _patience(self) -> float:
        return self._lease if self._is_gone else self._leave_after

    async def _serve(self) -> str:
        host, port = self._address
        async with asyncio.timeout(_DIAL_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=self._encryption)
        self._is_gone = False
        link = Link(reader, writer)
        try:
            async with asyncio.timeout(handshake.SECONDS):
                greeted = await handshake.greet(link, self._token, self._name, versions())
            log.info("connected to %s:%d as %s", host, port, self._name)
            self._said = ""
            if self._leave_after < math.inf:
                self._lease = min(greeted.lease, self._leave_after)
            connected = Connected(link, greeted.lease, self._runtime, self._room, self._forkservers)
            try:
                return await connected.serve()
            finally:
                self._heard = link.heard
        finally:
            link.close()

    def _say(self, text: str) -> None:
        """Once, as long as it is the same."""
        if text != self._said:
            log.warning("%s; it is tried again", text)
        self._said = text


def _pause(unreached: int, refused: int) -> float:
    seconds = after(refused, _REFUSED_PAUSES) or after(max(1, unreached), _PAUSES)
    return seconds * random.uniform(0.8, 1.2)
