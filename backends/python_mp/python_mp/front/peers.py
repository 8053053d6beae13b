"""Replicas help each other: while one has no ranks, the others compute what waits there.

    replica that is down                                 replica that serves
    hand_over --> FORWARD, inputs in a memfd --SEQPACKET--> _serve --> Replica.submit
    _receive  <-- DONE, outputs in a memfd; or REFUSED, the error  <-- PeerAnswer

A message is as in channel.py, its tensors lie in a memory file that comes with it. A lost
connection means that the peer has died: what it had not answered yet goes back to its home.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .. import errors
from ..batch import Array, Request, read_request
from ..channel import ALIGN, Arena, Kind, Message
from ..config import ModelConfig
from .status import Status

_FOLDER = "peers"
_MAX_MESSAGE = 1 << 16
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: see unix(7), SO_PEERCRED


class Peers:
    """The listener of one replica, and its way to the others.

    Args:
        submit: takes guests.
        take_back: takes requests that a peer did not answer.
    """

    def __init__(
        self,
        config: ModelConfig,
        replica: int,
        runtime: Path,
        status: Status,
        submit: Callable[[Sequence[Request]], None],
        take_back: Callable[[list[Request]], None],
    ) -> None:
        self._config = config
        self._status = status
        self._submit = submit
        self._take_back = take_back
        self._folder = runtime / _FOLDER
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._name = _name(os.getpid(), replica)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (self._folder / self._name).unlink(missing_ok=True)
        with _address(self._folder, self._name) as address:
            self._listener.bind(address)
        self._listener.listen()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        (self._folder / self._name).unlink(missing_ok=True)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # Ends the accept.
        self._thread.join()
        self._listener.close()

    def hand_over(self, requests: Sequence[Request]) -> list[Request]:
        """Gives the requests to a replica that serves; returns those that nobody took."""
        if not requests:
            return []
        peers = list(self._status.serving_peers())
        random.shuffle(peers)
        for peer in peers:
            with suppress(OSError):
                connection = self._connect(_name(peer["pid"], peer["replica"]))
                return Away(connection, self._take_back).send(requests)
        return list(requests)

    # -- the side that needs help ----------------------------------------------------------------

    def _connect(self, name: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with _address(self._folder, name) as address:
            connection.connect(address)
        _check_user(connection)
        return connection

    # -- the side that helps ---------------------------------------------------------------------

    def _listen(self) -> None:
        with suppress(OSError):  # Closed.
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            _check_user(connection)
            while (received := _receive(connection)) is not None:
                message, inputs = received
                answer = PeerAnswer(connection, message.batch)
                try:
                    request = read_request(inputs, self._config, answer)
                except errors.PythonMpError as error:
                    answer.fail(error)
                    continue
                _stamp(request, json.loads(message.text))
                self._submit([request])


class Away:
    """Requests that a peer has, until it has answered all of them."""

    def __init__(
        self, connection: socket.socket, take_back: Callable[[list[Request]], None]
    ) -> None:
        self._connection = connection
        self._take_back = take_back
        self._lock = threading.Lock()
        self._requests: dict[int, Request] = {}
        self._all_sent = False

    def send(self, requests: Sequence[Request]) -> list[Request]:
        """Returns those that the peer did not take."""
        threading.Thread(target=self._receive, daemon=True).start()
        left = list(requests)
        with suppress(OSError):
            for number, request in enumerate(requests):
                with self._lock:
                    self._requests[number] = request
                left.pop(0)
                _send(self._connection, Kind.FORWARD, number, request.inputs, _passport(request))
        with self._lock:
            self._all_sent = True
            if not self._requests or left:
                self._hang_up()
        return left

    def _receive(self) -> None:
        with self._connection, suppress(OSError):
            while (received := _receive(self._connection)) is not None:
                self._answer(*received)
        with self._lock:
            left = list(self._requests.values())
            self._requests.clear()
        self._take_back(left)

    def _answer(self, message: Message, tensors: dict[str, Array]) -> None:
        with self._lock:
            request = self._requests.pop(message.batch)
            if self._all_sent and not self._requests:
                self._hang_up()
        if message.kind is Kind.DONE:
            request.deliver(request.send, tensors)
            return
        error = _error(message.text)
        if type(error) is errors.Unavailable:  # Its trouble, not the request's.
            self._take_back([request])
        else:
            request.deliver(request.answer.fail, error)

    def _hang_up(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class PeerAnswer:
    """The way back to the replica that a guest came from."""

    keeps = False

    def __init__(self, connection: socket.socket, number: int) -> None:
        self._connection = connection
        self._number = number

    def send(self, outputs: Mapping[str, Array]) -> None:
        with suppress(OSError):  # Its home has died, and its client got an error.
            _send(self._connection, Kind.DONE, self._number, outputs)

    def fail(self, error: errors.PythonMpError) -> None:
        with suppress(OSError):
            text = f"{type(error).__name__} {error}"
            _send(self._connection, Kind.REFUSED, self._number, {}, text)

    def is_cancelled(self) -> bool:
        return False


def _passport(request: Request) -> str:
    left = request.deadline - time.perf_counter()
    return json.dumps({"suspicion": request.suspicion, "alone": request.alone, "seconds": left})


def _stamp(request: Request, passport: dict[str, Any]) -> None:
    request.guest = True
    request.suspicion, request.alone = passport["suspicion"], passport["alone"]
    request.deadline = time.perf_counter() + passport["seconds"]


def _error(text: str) -> errors.PythonMpError:
    name, _, message = text.partition(" ")
    return getattr(errors, name)(message)  # type: ignore[no-any-return]


def _send(
    connection: socket.socket,
    kind: Kind,
    number: int,
    tensors: Mapping[str, Array],
    text: str = "",
) -> None:
    room = sum(array.nbytes + ALIGN for array in tensors.values()) + 1
    arena = Arena.create(1, room)
    try:
        placed = arena.write_inputs(0, {name: [array] for name, array in tensors.items()})
        message = Message(kind, batch=number, tensors=placed, text=text).encode()
        socket.send_fds(connection, [message], [arena.fd], socket.MSG_DONTWAIT)
    finally:
        arena.close()


def _receive(connection: socket.socket) -> tuple[Message, dict[str, Array]] | None:
    data, descriptors, _, _ = socket.recv_fds(connection, _MAX_MESSAGE, 1)
    if not data:
        return None
    message = Message.decode(data)
    arena = Arena(descriptors[0], 1, os.fstat(descriptors[0]).st_size // 2)
    tensors = arena.read_inputs(0, message.tensors)
    arena.close()
    return message, tensors


def _check_user(connection: socket.socket) -> None:
    """Raises OSError unless the other side is a process of this user."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(raw)[1] != os.geteuid():
        connection.close()
        raise PermissionError("a peer must be of the same user")


def _name(pid: int, replica: int) -> str:
    return f"{pid}.{replica}"


@contextmanager
def _address(folder: Path, name: str) -> Iterator[str]:
    """A path for a socket that is never too long for one (108 bytes)."""
    descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)
