"""One rank's process, as its front sees it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path
from typing import NamedTuple

from ..channel import Connection
from ..rank_spec import RankSpec
from .nursery import Nursery

_TICKS = os.sysconf("SC_CLK_TCK")
STACK_SIGNAL = signal.SIGUSR1
"""Upon which a rank writes the stacks of its threads; see rank/worker.py."""


class Vital(NamedTuple):
    """What the kernel says of a process; see proc(5), /proc/PID/stat."""

    state: str
    """R running, S sleeping, D in the kernel, T stopped, t traced, Z ended."""
    cpu_seconds: float
    """Of all its threads, so far."""


def vital(pid: int) -> Vital:
    """Of any process; one that is gone counts as ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return Vital("Z", 0.0)
    return Vital(fields[0], (int(fields[11]) + int(fields[12])) / _TICKS)


class RankProcess:
    """Starts the rank at once, as the leader of a process group of its own: what the user's module
    may have started ends with it."""

    def __init__(
        self, nursery: Nursery, spec: RankSpec, connection: Connection, descriptors: list[int]
    ) -> None:
        self.rank = spec.rank
        self.connection = connection
        self._nursery = nursery
        self.pid = nursery.fork(spec, descriptors)
        self.pidfd = os.pidfd_open(self.pid)
        self._exit_code: int | None = None

    def ask_for_stacks(self) -> None:
        """A stopped process is resumed for it: do that only to one about to be killed."""
        for number in (STACK_SIGNAL, signal.SIGCONT):
            self._signal(number)

    def kill(self) -> None:
        if self._exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # Not reaped yet, so nobody else's pid.
            self._signal(signal.SIGKILL)

    def hang_up(self) -> None:
        """Closes the connection, upon which the rank exits by itself."""
        self.connection.close()

    def reap(self, timeout: float = 1.0) -> int:
        """The exit code, or minus the signal's number. Killed if it has not ended within `timeout`
        seconds: its socket is closed, so it is of no use."""
        if self._exit_code is None:
            select.select([self.pidfd], [], [], timeout)
            self.kill()  # If it has ended, then what it left in its group.
            self._exit_code = self._nursery.reap(self.pid)
            os.close(self.pidfd)
        return self._exit_code

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)


def describe(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"exited with {exit_code}"
