"""A program that runs beside a server, in a session of its own, and dies with this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Self

from python_mp.machine.backoff import Backoff
from python_mp.machine.net import Net
from python_mp.machine.thread import Thread
from server.process import child
from server.process.installation import PROJECT


class Beside(ABC):
    """A context in which it runs, again and again as `ended` says.

    Args:
        name: of the program, for the log and for /status.
        net: takes what goes wrong here.
        say: takes the lines meant for the user.
    """

    KILL_AFTER: float
    """Seconds from SIGTERM to SIGKILL."""

    def __init__(self, name: str, net: Net, say: Callable[[str], None]) -> None:
        self._name = name
        self._net = net
        self._say = say
        self._backoff = Backoff()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        # The kernel ends the child with the thread that started it, so this one does nothing else.
        self._thread = Thread(target=self._watch, name=name, daemon=True)

    @abstractmethod
    def start(self) -> subprocess.Popen[str]:
        """Start the program, by `spawn`."""

    def ended(self, code: int) -> float | None:
        """Seconds until it is started again, after it ended by itself; None for never."""
        now = time.monotonic()
        self._say(f"{self._name} ended with status {code}; starting it again")
        return max(0.0, self._backoff.failed(now) - now)

    def follow(self, process: subprocess.Popen[str]) -> int:
        """Its exit status, once it has ended."""
        return process.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed.set()
            self._signal(signal.SIGTERM)
        self._thread.join(self.KILL_AFTER)
        self._signal(signal.SIGKILL)
        self._thread.join()

    def _signal(self, number: signal.Signals) -> None:
        """To all of its session."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _watch(self) -> None:
        self._net.loop(self._name, self._live, self._closed)

    def _live(self) -> None:
        """From a start to the end, and the pause before the next one."""
        with self._lock:
            if self._closed.is_set():
                return
            self._process = self.start()
        code = self.follow(self._process)
        if not self._closed.is_set():
            self._closed.wait(self.ended(code))


def spawn(
    module: str, *options: str, environment: Mapping[str, str] | None = None, output: int | None
) -> subprocess.Popen[str]:
    """`python -m MODULE OPTIONS`; `output` takes what it prints: a descriptor, or None for ours."""
    file = child.hand_over([sys.executable, "-m", module, *options])
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), str(file)],
            cwd=PROJECT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=[file],
        )
    finally:
        os.close(file)
