"""One rank's process, as its front sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ..channel import Connection
from ..rank_spec import RankSpec

_PACKAGE_PARENT = Path(__file__).parents[2]


class RankProcess:
    """Starts the rank's program at once. Call from a thread that outlives it: the kernel kills the
    rank when that thread ends (PR_SET_PDEATHSIG)."""

    def __init__(self, spec: RankSpec, connection: Connection, inherited: tuple[int, ...]) -> None:
        self.rank = spec.rank
        self.connection = connection
        path = os.pathsep.join(filter(None, (str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "python_mp.rank.worker"],
            env=os.environ | spec.environment() | {"PYTHONPATH": path},
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def hang_up(self) -> None:
        """Closes the connection, upon which the rank exits by itself."""
        self.connection.close()

    def reap(self, timeout: float = 1.0) -> int:
        """The exit code, or minus the signal's number. Killed if it has not ended within `timeout`
        seconds: its socket is closed, so it is of no use."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()


def describe(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"exited with {exit_code}"
