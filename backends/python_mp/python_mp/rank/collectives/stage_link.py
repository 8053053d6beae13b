"""The link between neighbouring stages of different hosts.

A tensor goes from its own memory into the kernel, and at the other end out of it into the new one:
one copy on each side. What the kernel has no room for is copied once more, and a thread sends it,
so that the stage goes on with its next batch.
"""

from __future__ import annotations

import struct
from collections import deque
from threading import Condition, Thread

import torch
from torch import Tensor

from .communicator import DTYPES
from .tcp_link import Sending, TcpLink

_MOST_DIMS = 12
_HEADER = struct.Struct(f"<2Q{_MOST_DIMS}Q")
"""Number of the dtype, dimensions, shape."""
_IN_FLIGHT = 2
"""Messages that may wait for the kernel."""
_LOOK_SECONDS = 0.05


class Outgoing:
    """To the next stage."""

    def __init__(self, link: TcpLink) -> None:
        self._link = link
        self._waiting: deque[bytes] = deque()
        """The first of them is being sent."""
        self._changed = Condition()
        self._thread: Thread | None = None
        self._error: Exception | None = None
        self._closed = False

    def send(self, x: Tensor) -> None:
        shape = [*x.shape, *[0] * (_MOST_DIMS - x.dim())]
        header = _HEADER.pack(DTYPES.index(x.dtype), x.dim(), *shape)
        message = Sending(self._link, [memoryview(header), as_bytes(x)])
        with self._changed:
            while len(self._waiting) >= _IN_FLIGHT and not self._error:
                self._changed.wait(_LOOK_SECONDS)
                self._link.ended.check()
            if self._error:
                raise self._error
            if self._waiting or not message.advance():
                self._leave(b"".join(message.left))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()

    def _leave(self, message: bytes) -> None:
        self._waiting.append(message)
        self._changed.notify_all()
        if self._thread is None:
            self._thread = Thread(target=self._run, name="stage link", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while message := self._next():
                self._link.write(memoryview(message))
                with self._changed:
                    self._waiting.popleft()
                    self._changed.notify_all()
        except Exception as error:  # The next `send` raises it.
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> bytes | None:
        """None when the link is closed and nothing waits."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return self._waiting[0] if self._waiting else None


def receive(link: TcpLink) -> Tensor:
    """From the stage before."""
    header = bytearray(_HEADER.size)
    link.read(memoryview(header))
    dtype, dims, *shape = _HEADER.unpack(header)
    x = torch.empty(shape[:dims], dtype=DTYPES[dtype])
    link.read(as_bytes(x))
    return x


def as_bytes(x: Tensor) -> memoryview:
    """Of a contiguous tensor on the CPU: its own memory."""
    return x.reshape(-1).view(torch.uint8).numpy().data
