"""A connection to a rank of another host, and what goes through several of them at a time.

A wait ends with the group: the parent writes that into the region of its host (see `connect`).
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterable, Sequence

from ...model.errors import GroupAborted

_NAP_MS = 20
"""The parent wakes nobody: who waits looks at the region this often."""


class Ended:
    """Whether the parent has ended the group."""

    def __init__(self, region: str, patience: float) -> None:
        self._descriptor = os.open(region, os.O_RDONLY | os.O_CLOEXEC)
        self._patience = patience

    def check(self) -> None:
        """Raises GroupAborted if it has."""
        if os.pread(self._descriptor, 1, 0) not in (b"", b"\0"):
            raise GroupAborted("the group of ranks has ended")

    def wait(self, why: str) -> None:
        """A peer is gone. What became of it the parent says better than we do, so it gets the time
        to end the group; then ConnectionError is raised."""
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            self.check()
            time.sleep(_NAP_MS / 1000)
        raise ConnectionError(why)

    def close(self) -> None:
        os.close(self._descriptor)


class TcpLink:
    """To the rank `peer`; frames have no bounds but those that both ends agree on."""

    def __init__(self, connection: socket.socket, peer: int, ended: Ended) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.peer = peer
        self.ended = ended

    def write(self, *views: memoryview) -> None:
        complete([Sending(self, views)])

    def read(self, *views: memoryview) -> None:
        complete([Receiving(self, views)])

    def lost(self, why: object) -> None:
        self.ended.wait(f"rank {self.peer}, on another host, is gone: {why}")

    def close(self) -> None:
        self.connection.close()


class Transfer:
    """Bytes that go one way, as far as they have come."""

    event = 0

    def __init__(self, link: TcpLink, views: Iterable[memoryview]) -> None:
        self.link = link
        self.left = [view for view in views if view.nbytes]
        self.moved = 0

    def advance(self) -> bool:
        """As far as it goes without waiting; True once it is through."""
        try:
            while self.left:
                count = self._move()
                self.moved += count
                _skip(self.left, count)
        except BlockingIOError:
            return False
        except OSError as error:
            self.link.lost(error.strerror)
        return True

    def _move(self) -> int:
        raise NotImplementedError


class Sending(Transfer):
    event = select.POLLOUT

    def _move(self) -> int:
        return self.link.connection.sendmsg(self.left)


class Receiving(Transfer):
    event = select.POLLIN

    def _move(self) -> int:
        count = self.link.connection.recvmsg_into(self.left)[0]
        if not count:
            self.link.lost("it has closed the connection")
        return count


class Expecting(Receiving):
    """A frame that must begin as ours does, or the ranks do different things."""

    def __init__(self, link: TcpLink, header: bytes, body: memoryview) -> None:
        self._wanted, self._came = header, bytearray(len(header))
        super().__init__(link, [memoryview(self._came), body])

    def advance(self) -> bool:
        is_through = super().advance()
        if self.moved >= len(self._wanted) and self._came != self._wanted:
            raise RuntimeError(
                "the ranks are out of step: not all of them called the same collective with the"
                " same shape and dtype"
            )
        return is_through


def complete(transfers: Sequence[Transfer]) -> None:
    """All of them, side by side.

    Raises:
        GroupAborted: the group has ended.
        ConnectionError: a peer is gone, and the parent does not end the group.
    """
    pending = [each for each in transfers if not each.advance()]
    while pending:
        _poll(pending)
        pending = [each for each in pending if not each.advance()]


def _poll(pending: Sequence[Transfer]) -> None:
    events: dict[int, int] = {}
    for each in pending:
        descriptor = each.link.connection.fileno()
        events[descriptor] = events.get(descriptor, 0) | each.event
    poller = select.poll()
    for descriptor, event in events.items():
        poller.register(descriptor, event)
    if not poller.poll(_NAP_MS):
        pending[0].link.ended.check()


def _skip(views: list[memoryview], count: int) -> None:
    while views and count >= views[0].nbytes:
        count -= views.pop(0).nbytes
    if count:
        views[0] = views[0][count:]
