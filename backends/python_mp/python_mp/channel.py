"""Between the front and its ranks: data in shared memory, small messages on sockets.

The arena is one anonymous memory file (memfd), so nothing can be left in /dev/shm. It has a slot
for each batch in flight; pages exist only where something was written.

    | slot 0 inputs | slot 0 outputs | slot 1 inputs | slot 1 outputs | ...     each `half` bytes

The front writes a batch's inputs once and every rank maps them. The answering rank (first of the
last stage) writes the outputs. A message tells what lies where; one per datagram (SEQPACKET):

    kind u8 | 0 | slot u16 | tensors u32 | batch u64 | compute ns u64 | waited ns u64     32 bytes
    per tensor:  dtype u8 | dims u8 | name length u16 | offset in slot u64 | dims x i64 | name
    rest:        text, UTF-8 (what went wrong)

End of file on a socket is the death of the other side. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import InvalidInput

Array = npt.NDArray[Any]

_HEADER = struct.Struct("<BxHIQQQ")
_TENSOR = struct.Struct("<BBHQ")
_NAMES = "bool uint8 int8 int16 int32 int64 float16 float32 float64"
_DTYPES = tuple(np.dtype(name) for name in _NAMES.split())
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}
ALIGN = 64
_MAX_MESSAGE = 1 << 16
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
    CONDEMNED = 7
    """Between peers: contents of requests that have ended groups."""
    RECALLED = 8
    """Between peers: nobody waits for this request any more."""


class Placed(NamedTuple):
    """A tensor's place in its slot."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


class Message(NamedTuple):
    kind: Kind
    slot: int = 0
    batch: int = 0
    compute_ns: int = 0
    waited_ns: int = 0
    tensors: Mapping[str, Placed] = MappingProxyType({})
    text: str = ""

    def encode(self) -> bytes:
        parts = [
            _HEADER.pack(
                self.kind, self.slot, len(self.tensors), self.batch, self.compute_ns, self.waited_ns
            )
        ]
        for name, place in self.tensors.items():
            encoded, dims = name.encode(), len(place.shape)
            parts.append(_TENSOR.pack(_CODES[place.dtype], dims, len(encoded), place.offset))
            parts.append(struct.pack(f"<{dims}q", *place.shape))
            parts.append(encoded)
        text = self.text.encode(errors="backslashreplace")  # Half a surrogate pair is no UTF-8.
        return b"".join((*parts, text))[:_MAX_MESSAGE]

    @classmethod
    def decode(cls, data: bytes) -> Message:
        kind, slot, count, batch, compute_ns, waited_ns = _HEADER.unpack_from(data)
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
        return cls(Kind(kind), slot, batch, compute_ns, waited_ns, tensors, text)


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


class Connection:
    """One end of a front-to-rank socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    @classmethod
    def pair(cls) -> tuple[Connection, Connection]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Message | bytes) -> None:
        """Raises OSError when the other side is gone."""
        self.socket.send(message if isinstance(message, bytes) else message.encode())

    def receive(self, *, wait: bool = True) -> Message | None:
        """The next message; None at end of file.

        Raises:
            BlockingIOError: there is none yet, and `wait` is False.
        """
        try:
            data = self.socket.recv(_MAX_MESSAGE, 0 if wait else socket.MSG_DONTWAIT)
        except ConnectionResetError:
            return None
        return Message.decode(data) if data else None

    def close(self) -> None:
        self.socket.close()


class Arena:
    """The slots. `half` is the most bytes that the inputs, or the outputs, of a batch may take."""

    def __init__(self, fd: int, slots: int, half: int) -> None:
        self.fd = fd
        self._half = half
        self._memory = np.frombuffer(mmap.mmap(fd, 2 * half * slots), np.uint8)

    @classmethod
    def create(cls, slots: int, half: int) -> Arena:
        half = -(-half // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = os.memfd_create("python_mp-arena", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, 2 * half * slots)
            return cls(fd, slots, half)
        except (OSError, ValueError, OverflowError):
            os.close(fd)
            raise

    @property
    def half(self) -> int:
        return self._half

    def write_inputs(self, slot: int, tensors: Mapping[str, list[Array]]) -> dict[str, Placed]:
        """Copies each tensor's parts end to end into the slot.

        Raises:
            InvalidInput: they do not fit.
        """
        return self._write(2 * slot, tensors.items())

    def write_outputs(self, slot: int, tensors: Mapping[str, Array]) -> dict[str, Placed]:
        """A scalar counts as one row."""
        rows = ((name, [np.atleast_1d(array)]) for name, array in tensors.items())
        return self._write(2 * slot + 1, rows)

    def read_inputs(self, slot: int, tensors: Mapping[str, Placed]) -> dict[str, Array]:
        """Views, not copies."""
        return {name: self._view(2 * slot, place) for name, place in tensors.items()}

    def read_outputs(self, slot: int, tensors: Mapping[str, Placed]) -> dict[str, Array]:
        return {name: self._view(2 * slot + 1, place) for name, place in tensors.items()}

    def close(self) -> None:
        """The mapping itself goes with its last view."""
        os.close(self.fd)

    def _write(self, index: int, tensors: Iterable[tuple[str, list[Array]]]) -> dict[str, Placed]:
        placed, offset = {}, 0
        for name, parts in tensors:
            first = parts[0]
            shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
            place = Placed(first.dtype, shape, offset)
            offset += sum(part.nbytes for part in parts)
            if offset > self._half:
                raise InvalidInput(f"a batch's tensors take more than max_batch_bytes {self._half}")
            np.concatenate(parts, out=self._view(index, place))
            offset = -(-offset // ALIGN) * ALIGN
            placed[name] = place
        return placed

    def _view(self, index: int, place: Placed) -> Array:
        start = index * self._half + place.offset
        size = place.dtype.itemsize * math.prod(place.shape)
        return self._memory[start : start + size].view(place.dtype).reshape(place.shape)
