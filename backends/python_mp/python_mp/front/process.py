"""One rank's process, as its front sees it."""

from __future__ import annotations

import contextlib
import os
import select
import signal

from ..channel import Connection
from ..rank_spec import RankSpec
from .nursery import Nursery


class RankProcess:
    """Starts the rank at once."""

    def __init__(
        self, nursery: Nursery, spec: RankSpec, connection: Connection, descriptors: list[int]
    ) -> None:
        self.rank = spec.rank
        self.connection = connection
        self._nursery = nursery
        self._pid = nursery.fork(spec, descriptors)
        self._pidfd = os.pidfd_open(self._pid)
        self._exit_code: int | None = None

    def kill(self) -> None:
        if self._exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def hang_up(self) -> None:
        """Closes the connection, upon which the rank exits by itself."""
        self.connection.close()

    def reap(self, timeout: float = 1.0) -> int:
        """The exit code, or minus the signal's number. Killed if it has not ended within `timeout`
        seconds: its socket is closed, so it is of no use."""
        if self._exit_code is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                self.kill()
            self._exit_code = self._nursery.reap(self._pid)
            os.close(self._pidfd)
        return self._exit_code


def describe(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"exited with {exit_code}"
