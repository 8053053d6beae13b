"""What the ranks have to say, for whichever of two threads reads it.

    sockets, pidfds --> replies (epoll) --> all (epoll) --> supervisor's thread: `wait`
                            |               ^
                            |               wake (eventfd)
                            +--> a thread that attends: `poll`; `replies` is out of `all` then

A rank whose process or socket is at its end is gone, and so is its group: that is raised by `wait`,
in the supervisor's thread, no matter who read it. How the rank ended is asked only there, since to
ask is to wait for another process. The pidfd is there for a rank whose socket lives on in a process
that it started; a rank on another host has a pipe in its place.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock

from ..wire.message import Kind, Message
from .supervise.process import Rank

_ONE = (1).to_bytes(8, sys.byteorder)


class GroupEnded(Exception):
    """The group is of no more use. `raised` is the text of an exception in a rank; `killed` says
    that a signal from outside ended it, which is weak evidence against the requests in hand; `hung`
    that nothing got on; `own` that it was the front's own trouble."""

    def __init__(
        self,
        reason: str,
        *,
        raised: str = "",
        killed: bool = False,
        hung: bool = False,
        own: bool = False,
    ) -> None:
        super().__init__(reason)
        self.raised = raised
        self.killed = killed
        self.hung = hung
        self.own = own


Messages = list[tuple[int, Message]]
"""(rank, its message)."""


class Inbox:
    def __init__(self) -> None:
        self._ranks: dict[int, Rank] = {}
        # A file object, so that a late `wake` cannot reach another file under the same number.
        self._wake = os.fdopen(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+b", buffering=0)
        self._replies = select.epoll()
        self._all = select.epoll()
        self._all.register(self._wake, select.EPOLLIN)
        self._all.register(self._replies, select.EPOLLIN)
        self._reading = Lock()
        self._lost: tuple[Rank, Message | None] | None = None
        self._given_up: GroupEnded | None = None
        self._closed = False

    def add(self, rank: Rank) -> None:
        self._ranks[rank.connection.fileno()] = rank
        self._ranks[rank.ended_fd] = rank
        for fd in (rank.connection.fileno(), rank.ended_fd):
            self._replies.register(fd, select.EPOLLIN)

    def wake(self) -> None:
        """Lets `wait` return now; from any thread, also too late."""
        with suppress(ValueError, OSError):  # `wait` has a time-out, too.
            self._wake.write(_ONE)

    def lose(self, number: int, text: str) -> None:
        """Ends the group as if this rank had failed with that text; from any thread."""
        self.give_up(GroupEnded(f"rank {number} raised", raised=text))

    def give_up(self, why: GroupEnded) -> None:
        """Lets `wait` raise it; from any thread."""
        self._given_up = self._given_up or why
        self.wake()

    def wait(self, timeout: float | None) -> Messages:
        """What came, waiting up to `timeout` seconds for it.

        Raises:
            GroupEnded: a rank is gone or its engine raised.
        """
        for fd, _ in self._all.poll(timeout):
            if fd == self._wake.fileno():
                self._wake.read(len(_ONE))
        with self._reading:
            messages = self._read(0)
        if self._lost and not messages:
            raise _why(*self._lost)
        if self._given_up and not messages:
            raise self._given_up
        return messages

    @contextmanager
    def attended(self) -> Iterator[bool]:
        """Within it the calling thread uses `poll` and `wait` hears nothing of the ranks; False if
        the group has ended."""
        with self._reading:
            if self._lost or self._given_up or self._closed:
                yield False
                return
            self._all.modify(self._replies, 0)  # Unlike to register again, it needs no memory.
            try:
                yield True
            finally:
                self._all.modify(self._replies, select.EPOLLIN)

    def poll(self, timeout: float) -> Messages | None:
        """As `wait`, but None where the group has ended: that is for `wait` to raise."""
        messages = self._read(timeout)
        if messages or not (self._lost or self._given_up):
            return messages
        self.wake()
        return None

    def shut(self) -> None:
        """Nobody attends from here on, so that the ranks' sockets may be closed."""
        with self._reading:
            self._closed = True

    def close(self) -> None:
        self.shut()
        for each in (self._all, self._replies, self._wake):
            each.close()

    def _read(self, timeout: float) -> Messages:
        messages = []
        for fd, _ in sorted(self._replies.poll(timeout), key=self._is_pidfd):
            rank = self._ranks[fd]
            try:
                message = rank.connection.receive(wait=False)
            except BlockingIOError:  # The last words were read from its socket just now.
                message = None
            if message is not None and message.kind is not Kind.FAILED:
                messages.append((rank.rank, message))
            elif not self._lost:
                self._lost = rank, message
        return messages

    def _is_pidfd(self, event: tuple[int, int]) -> bool:
        return self._ranks[event[0]].ended_fd == event[0]


def _why(rank: Rank, last_words: Message | None) -> GroupEnded:
    if last_words is not None:
        return GroupEnded(f"rank {rank.rank} raised", raised=last_words.text)
    reason, killed = rank.fate()
    return GroupEnded(reason, killed=killed)
