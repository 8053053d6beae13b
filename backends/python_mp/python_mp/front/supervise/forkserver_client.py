"""The front's side of `rank/forkserver.py`: asks for ranks, and how they ended.

No wait is for ever: a forkserver that does not answer is killed, and every rank with it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

from ...machine.vital import vital
from ...model.errors import describe
from ...model.rank_spec import RankSpec

log = logging.getLogger(__name__)

_PACKAGE_PARENT = Path(__file__).parents[3]
_ANSWER_SECONDS = 10.0
"""A fork takes milliseconds, a hundred times that on a machine with far too much to do."""
_END_SECONDS = 5.0


class ForkserverLost(Exception):
    """It is dead or does not answer. Its ranks are gone with it; make another one."""


_SPINS = "20000"
"""Some 50 us of waiting for a core's other threads, where OpenMP's own is milliseconds: beside
another model on the same cores each waits for threads that the other keeps from running."""


class ForkserverClient:
    """Make it in a thread that outlives it, and use it there: the kernel kills the forkserver when
    that thread ends, and every rank when the forkserver does (PR_SET_PDEATHSIG).

    Args:
        folder: the version directory.
        server: pid of a tritonserver that this process must not outlive; 0 for none.
    """

    def __init__(self, engine: str, folder: Path, server: int) -> None:
        self._engine = engine
        self._is_ready = False
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_ANSWER_SECONDS)
        path = os.pathsep.join(filter(None, (str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
        environment = {"GOMP_SPINCOUNT": _SPINS} | os.environ | own
        environment.pop("MALLOC_ARENA_MAX", None)  # The watcher sets it, for tritonserver alone.
        with theirs:
            numbers = theirs.fileno(), os.getpid(), server
            arguments = [engine, str(folder), *map(str, numbers)]
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "python_mp.rank.forkserver", *arguments],
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            except OSError:
                self._socket.close()
                raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_sound(self) -> bool:
        """It lives, is ready, listens, and no signal has stopped it."""
        listens = self._is_ready and self._socket.fileno() >= 0 and self._process.poll() is None
        return listens and vital(self.pid).state not in "TtZX"

    @property
    def is_starting(self) -> bool:
        """It imports the engine."""
        return not self._is_ready and self._process.poll() is None

    def wait_ready(self, timeout: float) -> bool:
        """Whether it has imported the engine, after up to `timeout` seconds more.

        Raises:
            ForkserverLost: it died of that.
        """
        if not self._is_ready and _readable(self._socket.fileno(), timeout):
            if not self._socket.recv(64):
                raise ForkserverLost(
                    f"the process that starts ranks could not import {self._engine}"
                )
            self._is_ready = True
        return self._is_ready

    def fork(self, spec: RankSpec, descriptors: list[int]) -> int:
        """A new rank's pid; `descriptors` are its socket, the arena and the collectives' region.

        Raises:
            OSError: the kernel has no process or no descriptor to give.
            ForkserverLost: it is dead or does not answer.
        """
        answer = self._ask(spec.to_json(), descriptors)
        if answer is None:
            raise ForkserverLost("the process that starts ranks is dead or does not answer")
        if errno := answer.get("errno"):
            raise OSError(errno, os.strerror(errno))
        return int(answer["pid"])

    def reap(self, pid: int) -> int | None:
        """The exit code of a rank that has ended, or minus the signal's number; None if nobody
        knows."""
        with suppress(OSError):
            answer = self._ask(json.dumps(pid), [])
            # The kernel kills them all when the forkserver dies.
            return -SIGKILL if answer is None else answer.get("code")
        return None

    def kill(self) -> None:
        """With it the kernel kills all ranks."""
        self._process.kill()
        self.stop()

    def stop(self) -> None:
        """At its socket's end of file it exits, and with it what ranks there are."""
        self._socket.close()
        for _ in range(2):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
                return
            self._process.kill()
        log.error("the process that starts ranks, pid %d, cannot be ended", self.pid)

    def _ask(self, order: str, descriptors: list[int]) -> dict[str, Any] | None:
        """None if it is dead; it is, once its answer was not heard.

        Raises:
            OSError: the order could not be sent.
        """
        if self._socket.fileno() < 0:
            return None
        try:
            socket.send_fds(self._socket, [order.encode()], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            return None
        try:
            answer = self._socket.recv(256)
        except OSError as error:
            log.error("no answer of the process that starts ranks: %s", describe(error))
            self._process.kill()
            self._socket.close()  # A late answer would be taken for another's.
            return None
        return dict(json.loads(answer)) if answer else None


def _readable(descriptor: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1e3))
