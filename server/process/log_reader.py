"""Reads tritonserver's log to its end, so that it never waits for a reader."""

import subprocess
import time
from collections.abc import Callable
from typing import IO

from python_mp.machine.net import Loop
from python_mp.machine.thread import Thread
from server.process.log import Log, parse


class LogReader:
    """A thread of its own, from the start on.

    Args:
        log: takes the lines.
        loop: takes what goes wrong here.
        on_first: is called at the first record: it logs, so it has read its options.
    """

    def __init__(
        self,
        process: subprocess.Popen[str],
        log: Log,
        loop: Loop,
        on_first: Callable[[], object],
    ) -> None:
        assert process.stdout is not None
        self._lines: IO[str] = process.stdout
        self._log = log
        self._loop = loop
        self._on_first = on_first
        self._ended = self._heard = False
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Once the process has ended; whoever else holds the pipe is not waited for any longer."""
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self._lines.close()

    def _run(self) -> None:
        while not self._ended:
            self._loop.run(self._read)
            time.sleep(self._loop.pause)

    def _read(self) -> None:
        line = self._lines.readline()
        self._ended = not line
        if not self._heard and parse(line) is not None:
            self._heard = True
            self._on_first()
        if line:
            self._log.feed(line.rstrip("\n"))
