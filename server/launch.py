"""One tritonserver: started, waited for, stopped, cleaned up after."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

from server import child, health, installation
from server.errors import ServerError
from server.log import Log
from server.run import Run, begin
from server.settings import Settings

KILL_AFTER = 10.0  # seconds beyond tritonserver's own exit timeout


class TritonServer:
    """A tritonserver in a session of its own, so that a terminal's Ctrl-C reaches only its watcher.

    It drains when this process dies. Use it as a context manager, or call `start`, `wait_ready` and
    `stop`; all from the main thread, because the kernel takes the death of the thread that started
    a child for the death of the parent.

    Args:
        model_repository: folder with one folder a model.
        show: takes the lines of the log worth reading.
        colour: mark warnings and errors for a terminal.
        settings: any other attribute of `Settings`.
    """

    def __init__(
        self,
        model_repository: Path,
        *,
        show: Callable[[str], None] = print,
        colour: bool = False,
        **settings: Any,
    ) -> None:
        self.settings = Settings(model_repository, **settings)
        self.endpoints = self.settings.endpoints
        self.log = Log(show, raw=self.settings.verbose, colour=colour)
        self._show = show
        self._run: Run | None = None
        self._process: subprocess.Popen[str] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._deadline: threading.Timer | None = None

    def start(self) -> None:
        """Start tritonserver; returns at once.

        Raises:
            ServerError: it cannot be started, said in one sentence.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a server must be started from the main thread")
        found = installation.find()
        self.settings.check()
        self._run = begin()
        try:
            self._process = self._spawn(found, self._run)
            self._guard = self._run.guard()
        finally:
            os.close(self._run.lock)  # from here on it is tritonserver's and its children's
        self._reader = threading.Thread(target=self._read, args=[self._process.stdout], daemon=True)
        self._reader.start()

    def wait_ready(self, timeout: float = 600.0) -> float:
        """Wait until the server and every model are ready.

        Returns:
            The seconds it took.

        Raises:
            ModelError: models failed to load; one line for each.
            ServerError: the server ended or `timeout` seconds passed. It is stopped then.
        """
        begun = time.monotonic()
        while not health.is_ready(self.endpoints, http=self.settings.http):
            if self.returncode is not None:
                self.wait()
                raise self.log.why_it_ended(self.returncode)
            if time.monotonic() - begun > timeout:
                self.stop()
                raise ServerError(f"the server was not ready within {timeout:.0f} s")
            time.sleep(0.05)
        self.run.hide_segments()
        return time.monotonic() - begun

    def request_stop(self, *, at_once: bool = False) -> None:
        """Ask the server to drain, or end it at once. Safe in a signal handler.

        A server that outstays its exit timeout by far is ended too.
        """
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
        if self._deadline is None:
            patience = self.settings.exit_timeout + KILL_AFTER
            self._deadline = threading.Timer(patience, self._process.kill)
            self._deadline.daemon = True
            self._deadline.start()

    def wait(self) -> int:
        """Wait for the server's end and remove what it left.

        Returns:
            tritonserver's exit status, negative for a signal; 0 if it was never started.
        """
        if self._process is None:
            return 0
        code = self._process.wait()
        self._clean_up(self._process)
        return code

    def stop(self) -> int:
        """Drain, end, and remove what is left; returns what `wait` does."""
        self.request_stop()
        return self.wait()

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """tritonserver's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """tritonserver's exit status, None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def run(self) -> Run:
        """What the run owns: prefix of its segments, private folder."""
        assert self._run is not None
        return self._run

    def _spawn(self, found: installation.Installation, run: Run) -> subprocess.Popen[str]:
        backends = run.folder / "backends"
        found.assemble_backends(backends)
        launcher = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), str(found.binary)]
        places = [f"--backend-directory={backends}", f"--cache-directory={found.caches}"]
        environment = found.environment({**os.environ, **self.settings.environment})
        return subprocess.Popen(
            [*launcher, *places, *self.settings.arguments(run.prefix)],
            env={**environment, "PYTHON_MP_RUNTIME_DIR": str(run.folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=[run.lock],
        )

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self.log.feed(line.rstrip("\n"))

    def _clean_up(self, process: subprocess.Popen[str]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.run.end():
            self._show(f"processes of this run still live; {self.run.folder} is left to them")
        elif self._reader is not None and self._guard is not None and process.stdout is not None:
            self._guard.wait()
            self._reader.join()
            process.stdout.close()
