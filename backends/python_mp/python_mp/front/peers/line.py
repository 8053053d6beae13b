"""Between replicas: a message a datagram (SEQPACKET), as in wire/message.py; its tensors, and its
text where that is long, in a memory file that comes with it. No call waits for the other side
longer than a time-out of this module.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from array import array
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...model.request import Array
from ...wire.arena import ALIGN, Arena
from ...wire.departures import address
from ...wire.message import MAX_MESSAGE, Kind, Message
from ...wire.sockets import is_of_this_user

FOLDER = "peers"
PULSE_SECONDS = 1.0
"""A replica that waits for answers lets a peer hear of it so often, and the peer says the same."""
SILENCE_SECONDS = 5.0
"""After which the other side counts as dead."""
SEND_SECONDS = 0.2
"""For the other side to make room. An answer may be sent from a thread that serves others."""
_SHORTEST = 1e-3
"""0 would be for ever."""
_BUFFER = 1 << 18
_SHORT = 1 << 10
"""Characters. Longer texts lie in the memory file, so that many messages fit into the buffers."""
_TEXT = ""
"""The name of that text among the tensors; no model's has it."""
_TIME = struct.Struct("@ll")  # struct timeval


def name_of(*, pid: int, replica: int, **_: Any) -> str:
    """Of a replica's socket, by what its status says."""
    return f"{pid}.{replica}"


def listen(folder: Path, name: str) -> socket.socket:
    """Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        (folder / name).unlink(missing_ok=True)
        with address(folder, name) as path:
            listener.bind(path)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def connect(folder: Path, name: str) -> Line:
    """Raises OSError; also where the peer has not accepted many before this one."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        line = Line(connection, PULSE_SECONDS)
        with address(folder, name) as path:
            connection.connect(path)
        _check_user(connection)
    except OSError:
        connection.close()
        raise
    return line


def accept(listener: socket.socket) -> Line:
    """Raises OSError."""
    connection, _ = listener.accept()
    try:
        _check_user(connection)
        return Line(connection, SILENCE_SECONDS)
    except OSError:
        connection.close()
        raise


class Line:
    """One end of a connection; any thread may use it."""

    def __init__(self, connection: socket.socket, receive_seconds: float) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        """Nobody sends while another thread closes, or the number may be another file's by then."""
        _prepare(connection, receive_seconds)

    @property
    def is_closed(self) -> bool:
        return self._socket.fileno() < 0

    def send(
        self,
        kind: Kind,
        number: int = 0,
        tensors: Mapping[str, Array] | None = None,
        text: str = "",
    ) -> None:
        """All of it or nothing.

        Raises:
            BlockingIOError: the other side does not read.
            OSError: it is gone, there is no memory or descriptor left, or it is more than a message
                can describe.
        """
        if len(text) > _SHORT:
            encoded = np.frombuffer(text.encode(errors="backslashreplace"), np.uint8)
            tensors, text = {**(tensors or {}), _TEXT: encoded}, ""
        if not tensors:
            self._send(Message(kind, batch=number, text=text), [])
            return
        arena = Arena.create(1, sum(each.nbytes + ALIGN for each in tensors.values()) + 1)
        try:
            placed = arena.write_inputs(0, {name: [each] for name, each in tensors.items()})
            self._send(Message(kind, batch=number, tensors=placed, text=text), [arena.fd])
        finally:
            arena.close()

    def receive(self) -> tuple[Message, dict[str, Array]] | None:
        """The next message; None where the other side has hung up.

        Raises:
            BlockingIOError: nothing came in time.
            OSError: it is gone, or there is no memory or descriptor left.
        """
        data, descriptors, flags, _ = socket.recv_fds(self._socket, MAX_MESSAGE, 1)
        try:
            if not data:
                return None
            message = Message.decode(data)
            cut = flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
            if cut or (message.tensors and not descriptors):
                raise OSError("a message did not come whole")
            return _whole(message, _map(descriptors[0], message) if descriptors else {})
        except BlockingIOError as error:  # Something came, and is lost.
            raise OSError("a message could not be mapped") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def wait_at_most(self, seconds: float) -> None:
        """For what comes, from now on. Raises OSError."""
        _set_timeout(self._socket, socket.SO_RCVTIMEO, max(_SHORTEST, seconds))

    def shutdown(self) -> None:
        """Whoever receives here or there hears of it."""
        with self._lock, suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """It is closed, whatever the kernel says of it; see close(2)."""
        with self._lock, suppress(OSError):
            self._socket.close()

    def _send(self, message: Message, descriptors: list[int]) -> None:
        # Not `send_fds`, which ignores its flags in some versions.
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors).tobytes())
        with self._lock:
            self._socket.sendmsg([message.encode()], [rights] if descriptors else [])


def _prepare(connection: socket.socket, receive_seconds: float) -> None:
    """Its time-outs are the kernel's: they hold for every call, in whatever version of Python."""
    _set_timeout(connection, socket.SO_RCVTIMEO, receive_seconds)
    _set_timeout(connection, socket.SO_SNDTIMEO, SEND_SECONDS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)


def _set_timeout(connection: socket.socket, option: int, seconds: float) -> None:
    whole = int(seconds)
    value = _TIME.pack(whole, int((seconds - whole) * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, option, value)


def _check_user(connection: socket.socket) -> None:
    """Raises PermissionError unless the other side is a process of this user."""
    if not is_of_this_user(connection):
        raise PermissionError("a peer must be of the same user")


def _map(descriptor: int, message: Message) -> dict[str, Array]:
    """Views; the mapping goes with the last of them."""
    arena = Arena(descriptor, 1, os.fstat(descriptor).st_size // 2)
    return arena.read_inputs(0, message.tensors)


def _whole(message: Message, tensors: dict[str, Array]) -> tuple[Message, dict[str, Array]]:
    """With the text, wherever it lay."""
    if (encoded := tensors.pop(_TEXT, None)) is not None:
        message = message._replace(text=encoded.tobytes().decode(errors="replace"))
    return message, tensors
