"""The front's side of `rank/nursery.py`: asks for ranks, and how they ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGKILL
from threading import Lock

from ..rank_spec import RankSpec

_PACKAGE_PARENT = Path(__file__).parents[2]


class Nursery:
    """Make it in a thread that outlives it: the kernel kills the nursery when that thread ends, and
    every rank when the nursery does (PR_SET_PDEATHSIG).

    Args:
        server: pid of a tritonserver that this process must not outlive; 0 for none.
    """

    def __init__(self, engine: str, server: int) -> None:
        self._began = time.monotonic()
        self._lock = Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join(filter(None, (str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
        environment.pop("MALLOC_ARENA_MAX", None)  # The watcher sets it, for tritonserver alone.
        with theirs:
            arguments = [engine, str(theirs.fileno()), str(os.getpid()), str(server)]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "python_mp.rank.nursery", *arguments],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def wait_ready(self) -> float:
        """Until it has imported the engine; the seconds that it took.

        Raises:
            OSError: it died of that.
        """
        if not self._socket.recv(64):
            raise OSError("the process that starts ranks could not import the engine")
        return time.monotonic() - self._began

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, spec: RankSpec, descriptors: list[int]) -> int:
        """A new rank's pid; `descriptors` are its socket, the arena and the collectives' region.

        Raises:
            OSError: the nursery is dead.
        """
        answer = self._ask(spec.to_json(), descriptors)
        if answer is None:
            raise OSError("the process that starts ranks is dead")
        return answer

    def reap(self, pid: int) -> int:
        """Waits for a rank's end: its exit code, or minus the signal's number."""
        answer = self._ask(json.dumps(pid), [])
        return -SIGKILL if answer is None else answer  # What the kernel does in that case.

    def close(self) -> None:
        """Call when all ranks are reaped."""
        self._socket.close()
        self._process.wait()

    def _ask(self, order: str, descriptors: list[int]) -> int | None:
        with self._lock:
            try:
                socket.send_fds(self._socket, [order.encode()], descriptors)
                answer = self._socket.recv(64)
            except (BrokenPipeError, ConnectionResetError):
                return None
        return int(answer) if answer else None
