"""What the front and its ranks tell each other, replicas each other, and hosts each other: one
message a datagram, or a frame of a connection between hosts (agent/link.py).

    kind u8 | 0 | slot u16 | tensors u32 | batch u64 | compute ns u64 | waited ns u64
    padded u64                                                                        40 bytes
    per tensor:  dtype u8 | dims u8 | name length u16 | offset in slot u64 | dims x i64 | name
    rest:        text, UTF-8 (what went wrong)

Tensors themselves lie in shared memory, see arena.py. Nothing is ever unpickled, and nothing is
ever cut: what is too large for a datagram is not sent.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

_HEADER = struct.Struct("<BxHIQQQQ")
_TENSOR = struct.Struct("<BBHQ")
_NAMES = "bool uint8 int8 int16 int32 int64 float16 float32 float64"
_DTYPES = tuple(np.dtype(name) for name in _NAMES.split())
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}
MAX_MESSAGE = 1 << 16
MAX_TENSORS = 48 << 10
"""Bytes of a message that describe tensors; sockets hold a few such messages."""

_MOST_TEXT, _MOST_NAMED, _MOST_NUMBER = 2000, 4000, 1 << 26
# A refusal fits into a message; the others are named next. No batch has so many sequences.


class Kind(IntEnum):
    FORWARD = 1
    """Front to rank: compute the batch in this slot."""
    READY = 2
    """Rank to front: loaded. The only thing that it says before it gets a batch."""
    DONE = 3
    """Rank to front: through with the batch; the answering rank's has the outputs, or a text that
    says why they cannot be sent."""
    REFUSED = 4
    """Rank to front: the batch cannot be computed, see `Refusal`; every rank says so, and none has
    met another."""
    FAILED = 5
    """Rank to front: loading or the engine raised; the rank exits."""
    PULSE = 6
    """Between peers: somebody reads here."""
    POISON = 7
    """Between peers: contents of requests that have ended groups."""
    RECALLED = 8
    """Between peers: nobody waits for this request any more."""
    PART = 9
    """Between peers: more tokens of a stream, see `front/schedule/travelling.py`."""
    STORE = 10
    """While ranks load: a key of the place where they meet, see `front/rendezvous.py`."""
    HELLO = 11
    """Between hosts: who speaks, and proof of the token; see `agent/handshake.py`."""
    START = 12
    """Exchange to agent: a rank is to be started."""
    ENDED = 13
    """Agent to exchange: a rank has ended, and how."""
    KILL = 14
    """Exchange to agent: end a rank."""
    STACKS = 15
    """Exchange to agent: have a rank write the stacks of its threads. And back: what it wrote."""
    FETCH = 16
    """Agent to exchange: a part of a file is wanted. And back: its bytes."""
    PREPARE = 17
    """Exchange to agent: ranks of this model may be started soon."""


class Placed(NamedTuple):
    """A tensor's place in its slot."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.offset + self.dtype.itemsize * math.prod(self.shape)


class Message(NamedTuple):
    kind: Kind
    slot: int = 0
    batch: int = 0
    compute_ns: int = 0
    waited_ns: int = 0
    tensors: Mapping[str, Placed] = MappingProxyType({})
    text: str = ""
    padded: int = 0
    """Places of the batch's rectangles that no row was in."""

    def encode(self) -> bytes:
        """Raises OSError where it is more than a datagram may hold."""
        parts = [
            _HEADER.pack(
                self.kind,
                self.slot,
                len(self.tensors),
                self.batch,
                self.compute_ns,
                self.waited_ns,
                self.padded,
            )
        ]
        for name, place in self.tensors.items():
            called, dims = name.encode(), len(place.shape)
            parts.append(_TENSOR.pack(_CODES[place.dtype], dims, len(called), place.offset))
            parts.append(struct.pack(f"<{dims}q", *place.shape))
            parts.append(called)
        text = self.text.encode(errors="backslashreplace")  # Half a surrogate pair is no UTF-8.
        encoded = b"".join((*parts, text))
        if len(encoded) > MAX_MESSAGE:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Raises ValueError where nobody of ours would say that."""
        try:
            return cls._decode(data)
        except (struct.error, IndexError) as error:
            raise ValueError(f"a message is cut or damaged: {error}") from None

    @classmethod
    def _decode(cls, data: bytes) -> Message:
        kind, slot, count, batch, compute_ns, waited_ns, padded = _HEADER.unpack_from(data)
        at = _HEADER.size
        tensors = {}
        for _ in range(count):
            code, dims, name_length, offset = _TENSOR.unpack_from(data, at)
            at += _TENSOR.size
            shape = struct.unpack_from(f"<{dims}q", data, at)
            at += 8 * dims
            tensors[data[at : at + name_length].decode()] = Placed(_DTYPES[code], shape, offset)
            at += name_length
        text = data[at:].decode(errors="replace")
        return cls(Kind(kind), slot, batch, compute_ns, waited_ns, tensors, text, padded)


def described(name: str, dims: int) -> int:
    """Bytes that a tensor takes in a message."""
    return _TENSOR.size + 8 * dims + len(name.encode())


class Refusal(NamedTuple):
    """Why a batch is not computed: the text of a REFUSED."""

    error: str
    """The name of its class in errors.py."""
    text: str
    sequences: tuple[int, ...] = ()
    """Those of the batch that it is about; none where it may be any."""

    def encode(self) -> str:
        named = [each for each in self.sequences if 0 <= each < _MOST_NUMBER][:_MOST_NAMED]
        return json.dumps([self.error, self.text[:_MOST_TEXT], named])

    @classmethod
    def decode(cls, text: str) -> Refusal:
        error, said, sequences = json.loads(text)
        return cls(error, said, tuple(sequences))
