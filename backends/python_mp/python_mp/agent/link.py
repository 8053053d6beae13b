"""A connection between an agent and the exchange: frames over TCP, or TLS.

    size u32 | channel u32 | message size u32 | message | payload
              <----------------- `size` bytes ------------------>

The message is that of wire/message.py. Channel 0 is the agent's; each rank on its host has one of
its own, where messages pass as they would between front and rank. The payload is what such a
message's tensors have in their slot; of others it is JSON, or a part of a file.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from ..model.errors import PythonMpError
from ..wire.message import MAX_MESSAGE, Message

_SIZE = struct.Struct("<I")
_HEADER = struct.Struct("<II")
_PIECE = 1 << 18
"""Bytes that are read at a time, at most: a slow connection is heard of while a frame arrives."""
_TOGETHER = 1 << 16
"""Bytes of a payload that is worth a packet of its own."""
GREETING = 1 << 12
"""Bytes of a frame of somebody who has not proved who it is."""
CONTROL = 0


class LinkError(PythonMpError):
    """The other side says what nobody of ours would say."""


class Frame(NamedTuple):
    channel: int
    message: Message
    payload: bytes


class Link:
    """One end of it, of one event loop.

    Attributes:
        heard: when anything came last; on the monotonic clock, seconds.
        most: bytes that a frame of this channel may have.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.heard = time.monotonic()
        self.most: Callable[[int], int] = lambda channel: GREETING

    @property
    def own_address(self) -> str:
        """Of this host, as the other one reaches it."""
        return str(self._writer.get_extra_info("sockname")[0])

    @property
    def address(self) -> str:
        """Of the other host."""
        return str(self._writer.get_extra_info("peername")[0])

    @property
    def silence(self) -> float:
        """Seconds since anything was heard."""
        return time.monotonic() - self.heard

    def send(
        self, channel: int, message: Message | bytes, payload: bytes | memoryview = b""
    ) -> None:
        """Does not wait: what is under way is bounded by the slots of the ranks' arenas. Nothing is
        sent on a connection that has ended; its reader hears of that."""
        if self._writer.is_closing():
            return
        said = message if isinstance(message, bytes) else message.encode()
        size = _HEADER.size + len(said) + len(payload)
        head = _SIZE.pack(size) + _HEADER.pack(channel, len(said)) + said
        if len(payload) <= _TOGETHER:
            self._writer.write(head + payload)
        else:
            self._writer.write(head)
            self._writer.write(payload)

    async def drain(self) -> None:
        """Waits until the other side has taken most of it. Raises OSError."""
        await self._writer.drain()

    async def receive(self) -> Frame | None:
        """The next one; None where the other side has hung up.

        Raises:
            LinkError: it is too long, cut or damaged.
            OSError: the connection broke.
        """
        if (head := await self._read(_SIZE.size + _HEADER.size)) is None:
            return None
        (size,), (channel, said) = _SIZE.unpack_from(head), _HEADER.unpack_from(head, _SIZE.size)
        left = size - _HEADER.size
        if not 0 <= said <= min(left, MAX_MESSAGE) or size > self.most(channel):
            raise LinkError("a frame that is too long, or shorter than its message")
        if (body := await self._read(left)) is None:
            return None
        try:
            return Frame(channel, Message.decode(body[:said]), body[said:])
        except ValueError:
            raise LinkError("a message that is cut or damaged") from None

    async def _read(self, size: int) -> bytes | None:
        pieces = []
        while size:
            if not (piece := await self._reader.read(min(size, _PIECE))):
                return None
            pieces.append(piece)
            self.heard = time.monotonic()
            size -= len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def leave(self) -> None:
        """Once the other side has what it was told."""
        self._writer.close()

    def close(self) -> None:
        """At once: nobody waits for what is under way."""
        with suppress(OSError):
            self._writer.transport.abort()
