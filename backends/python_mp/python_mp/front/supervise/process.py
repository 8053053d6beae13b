"""One rank, as its front sees it: a process. Those of other hosts are in other_hosts.py."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Iterable
from typing import Protocol

from ...machine.vital import Vital, vital
from ...model.rank_spec import RankSpec
from ...wire.sockets import Connection
from .forkserver_client import ForkserverClient

log = logging.getLogger(__name__)

DIE_SECONDS = 5.0
"""After a SIGKILL. Who needs longer hangs in the kernel: in a device's driver, in a file system."""
STACK_SIGNAL = signal.SIGUSR1
"""Upon which a rank writes the stacks of its threads; see rank/main.py."""


class Rank(Protocol):
    """A rank that was started."""

    rank: int
    host: str
    """Which one; empty on this one."""
    connection: Connection
    ended_fd: int
    """Readable once it has ended."""
    is_reaped: bool

    @property
    def pid(self) -> int:
        """On its host."""

    def vital(self) -> Vital:
        """Raises OSError where it cannot be said."""

    def ask_for_stacks(self) -> None:
        """They come into the group's file for them."""

    def kill(self) -> None: ...

    def close_connection(self) -> None:
        """Closes the connection, upon which the rank exits by itself."""

    def reap(self, timeout: float = ..., mercy: float = ...) -> int | None:
        """The exit code, or minus the signal's number; None if it is not known."""

    def fate(self) -> tuple[str, bool]:
        """How it has ended, as a sentence, and whether that came from outside."""

    def close(self) -> None:
        """Lets go of it, whatever became of it."""


class RankProcess:
    """Starts the rank at once, as the leader of a process group of its own: what the user's module
    may have started ends with it. Made and reaped by the supervisor's thread."""

    host = ""

    def __init__(
        self,
        forkserver: ForkserverClient,
        spec: RankSpec,
        connection: Connection,
        descriptors: list[int],
    ) -> None:
        self.rank = spec.rank
        self.connection = connection
        self._forkserver = forkserver
        self.pid = forkserver.fork(spec, descriptors)
        try:
            self.ended_fd = os.pidfd_open(self.pid)
        except OSError:
            os.kill(self.pid, signal.SIGKILL)  # Nobody would know of it.
            forkserver.reap(self.pid)
            raise
        self._held = contextlib.ExitStack()
        self._held.callback(os.close, self.ended_fd)
        self.is_reaped = False
        self._exit_code: int | None = None

    def vital(self) -> Vital:
        return vital(self.pid)

    def fate(self) -> tuple[str, bool]:
        code = self.reap()
        return f"rank {self.rank} {describe(code)}", code == -signal.SIGKILL

    def ask_for_stacks(self) -> None:
        """A stopped process is resumed for it: do that only to one about to be killed."""
        for number in (STACK_SIGNAL, signal.SIGCONT):
            self._signal(number)

    def kill(self) -> None:
        if not self.is_reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)  # Not reaped yet, so nobody else's pid.
            self._signal(signal.SIGKILL)

    def close_connection(self) -> None:
        """Closes the connection, upon which the rank exits by itself."""
        self.connection.close()

    def reap(self, timeout: float = 1.0, mercy: float = DIE_SECONDS) -> int | None:
        """The exit code, or minus the signal's number; None if it is not known. Killed if it has
        not ended within `timeout` seconds: its socket is closed, so it is of no use. One that has
        not ended `mercy` seconds later is left alone."""
        if not self.is_reaped:
            wait_all([self], timeout)
            self.kill()  # If it has ended, then what it left in its group.
            if wait_all([self], mercy):
                self._exit_code = self._forkserver.reap(self.pid)
            if self._exit_code is None:
                log.error(
                    "rank %d, pid %d, is left behind: it cannot be ended", self.rank, self.pid
                )
            self.is_reaped = True
            self._close_ended_fd()
        return self._exit_code

    def close(self) -> None:
        """Lets go of it, whatever became of it."""
        self.is_reaped = True
        self._close_ended_fd()
        self.close_connection()

    def _close_ended_fd(self) -> None:
        with contextlib.suppress(OSError):  # It is closed even then; see close(2).
            self._held.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.ended_fd, number)


def wait_all(ranks: Iterable[Rank], timeout: float) -> bool:
    """Whether all of them have ended; waits up to `timeout` seconds for it."""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    left = {rank.ended_fd for rank in ranks if not rank.is_reaped}
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    while left:
        ended = poll.poll(max(0.0, deadline - time.monotonic()) * 1e3)
        if not ended:
            return False
        for descriptor, _ in ended:
            poll.unregister(descriptor)
            left.discard(descriptor)
    return True


def describe(exit_code: int | None) -> str:
    if exit_code is None:
        return "is lost, nobody knows how"
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"exited with {exit_code}"
