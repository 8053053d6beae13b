"""How a decoder within an ensemble hears that a stream's client has gone, or wants no more of it.

Triton tells only those steps of an ensemble of a cancellation that begin after it. The decoder has
begun long before; the step behind it begins with each part, so it passes the news on:

    each part: STREAM = whose it is --> the step behind: is it cancelled? --> `tell`
    Departures, in the decoder's stub <-- the same, a datagram over a socket in the run's folder

The step behind takes STREAM from anybody, as any input. So most of it is a secret that only this
stream's parts have: nobody ends the stream of another.

A client may choose the secret, by a key of its own, and leave with that instead of cancelling:

    a request with the key --> the step behind: `leave` --> Departures of all decoders, the same way
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from ..machine.net import Net
from ..machine.thread import Thread

FOLDER = "departures"
Whose = tuple[int, ...]
"""A stream: the pid of its decoder's stub, and a secret of 128 bits; `SIZE` numbers of int32."""
SIZE = 5
_WHOSE = struct.Struct(f"@{SIZE}i")
_SECRET = struct.Struct(f"@{SIZE - 1}i")


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
        self._left: dict[Whose, Callable[[], None]] = {}
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

    def expect(self, left: Callable[[], None], key: str | None = None) -> Whose:
        """What `tell` is to be given, or `leave` the key; `left` is called then, from another
        thread, once or never."""
        whose = (os.getpid(), *_secret(key))
        self._left[whose] = left
        return whose

    def forget(self, whose: Whose) -> None:
        """That stream is over."""
        self._left.pop(whose, None)

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
        said = self._socket.recv(_WHOSE.size)
        if len(said) == _WHOSE.size and (left := self._left.pop(_WHOSE.unpack(said), None)):
            left()


def tell(runtime: Path, whose: Whose) -> None:
    """The client of this stream has gone. Where it cannot be told, the stream comes to its end by
    itself."""
    with suppress(OSError), _socket() as sending, address(runtime / FOLDER, str(whose[0])) as path:
        sending.sendto(_WHOSE.pack(*whose), socket.MSG_DONTWAIT, path)


def leave(runtime: Path, key: str) -> None:
    """The client with this key wants no more of its stream, whichever decoder has it."""
    with suppress(OSError):
        for name in os.listdir(runtime / FOLDER):
            tell(runtime, (int(name), *_secret(key)))


def _secret(key: str | None) -> tuple[int, ...]:
    if key is None:
        return _SECRET.unpack(secrets.token_bytes(_SECRET.size))
    return _SECRET.unpack(blake2b(key.encode(), digest_size=_SECRET.size).digest())


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
