"""Who dials the exchange is a stranger at first. There are only so many at a time, each has only so
long to prove who it is, and what they do fills no log."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
import time
from collections.abc import Awaitable, Callable

from ..model.errors import describe
from . import handshake
from .agents import Agent
from .link import Link

log = logging.getLogger("exchange")

_MOST_STRANGERS = 32
_AGAIN_SECONDS, _MOST_SAID = 60.0, 256
_FULL_SECONDS = 0.5
"""Until the kernel is asked again that had no descriptor to give."""
_GOODBYE_SECONDS = 1.0
"""For the end of an encrypted connection."""


class Door:
    """
    Args:
        greet: finds out who it is; raises what is wrong with it.
        serve: until an agent's connection ends.
    """

    def __init__(
        self,
        encryption: ssl.SSLContext | None,
        greet: Callable[[Link], Awaitable[Agent]],
        serve: Callable[[Agent], Awaitable[None]],
    ) -> None:
        self._encryption = encryption
        self._greet, self._serve = greet, serve
        self._strangers: dict[asyncio.Task[None], None] = {}
        """The oldest one first."""
        self._agents: set[asyncio.Task[None]] = set()
        self._said: dict[str, float] = {}

    async def watch(self, listener: socket.socket) -> None:
        """For ever."""
        while True:
            try:
                connection, (address, *_) = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:
                self._say(f"a connection cannot be taken: {describe(error)}")
                await asyncio.sleep(_FULL_SECONDS)
                continue
            stranger = asyncio.create_task(self._let_in(connection, address))
            self._strangers[stranger] = None
            stranger.add_done_callback(lambda task: self._strangers.pop(task, None))
            await asyncio.sleep(0)  # It begins, and so closes what it has.
            if len(self._strangers) > _MOST_STRANGERS:  # Nobody keeps agents out by saying nothing.
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.cancel()

    async def _let_in(self, connection: socket.socket, address: str) -> None:
        try:
            async with asyncio.timeout(handshake.SECONDS):
                link = await self._linked(connection)
                agent = await self._known(link)
        except Exception as error:  # Whatever a stranger does is no more than that.
            self._say(f"a connection from {address} is refused: {describe(error)}")
            return
        task = asyncio.current_task()
        assert task
        self._strangers.pop(task, None)
        self._agents.add(task)
        task.add_done_callback(self._agents.discard)
        await self._serve(agent)

    async def _linked(self, connection: socket.socket) -> Link:
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        goodbye = _GOODBYE_SECONDS if self._encryption else None
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._encryption, ssl_shutdown_timeout=goodbye
            )
        except BaseException:
            connection.close()
            raise
        return Link(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def _known(self, link: Link) -> Agent:
        try:
            agent = await self._greet(link)
            await link.drain()
        except asyncio.CancelledError:
            link.close()
            raise
        except Exception:
            link.leave()
            raise
        return agent

    def _say(self, text: str) -> None:
        """Not again within a minute: nobody fills the log by dialling."""
        now = time.monotonic()
        if now - self._said.get(text, -math.inf) < _AGAIN_SECONDS:
            return
        if len(self._said) >= _MOST_SAID:
            self._said.clear()
        self._said[text] = now
        log.warning("%s", text)
