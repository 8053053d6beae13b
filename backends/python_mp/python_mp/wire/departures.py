"""How a decoder within an ensemble hears that a stream's client has gone.

Triton tells only those steps of an ensemble of a cancellation that begin after it. The decoder has
begun long before; the step behind it begins with each part, so it passes the news on:

    each part: STREAM = pid, number --> the step behind: is it cancelled? --> `tell`
    Departures, in the decoder's stub <-- the number, a datagram over a socket in the run's folder
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from ..machine.net import Net
from ..machine.thread import Thread

FOLDER = "departures"
_NUMBER = struct.Struct("@i")
_MOST = 1 << 31


class Departures:
    """Of the streams of this process.

    Args:
        runtime: a private folder.

    Raises:
        OSError: there is no socket to be had.
    """

    def __init__(self, runtime: Path, net: Net) -> None:
        self._folder = runtime / FOLDER
        self._net = net
        self._numbers = count()
        self._left: dict[int, Callable[[], None]] = {}
        self._stopping = threading.Event()
        self._socket = _socket()
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._path.unlink(missing_ok=True)
            with address(self._folder, self._path.name) as path:
                self._socket.bind(path)
            self._thread = Thread(target=self._run, name="departures", daemon=True)
            self._thread.start()
        except Exception:
            self._socket.close()
            raise

    def expect(self, left: Callable[[], None]) -> tuple[int, int]:
        """What `tell` is to be given; `left` is called then, from another thread, once or never."""
        number = next(self._numbers) % _MOST
        self._left[number] = left
        return os.getpid(), number

    def forget(self, number: int) -> None:
        """That stream is over."""
        self._left.pop(number, None)

    def stop(self) -> None:
        self._stopping.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self._folder / str(os.getpid())

    def _run(self) -> None:
        self._net.loop("departures", self._hear, self._stopping)

    def _hear(self) -> None:
        said = self._socket.recv(_NUMBER.size)
        if len(said) == _NUMBER.size:
            (number,) = _NUMBER.unpack(said)
            if left := self._left.pop(number, None):
                left()


def tell(runtime: Path, pid: int, number: int) -> None:
    """The client of this stream has gone. Where it cannot be told, the stream comes to its end by
    itself."""
    with suppress(OSError), _socket() as sending, address(runtime / FOLDER, str(pid)) as path:
        sending.sendto(_NUMBER.pack(number), socket.MSG_DONTWAIT, path)


@contextmanager
def address(folder: Path, name: str) -> Iterator[str]:
    """A path for a socket that is never too long for one (108 bytes). Raises OSError."""
    descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
