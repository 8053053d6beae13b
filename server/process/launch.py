"""One tritonserver: started, waited for, stopped, cleaned up after."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from python_mp.machine.net import Net
from server import token
from server.control import Control
from server.errors import ModelError, ServerError
from server.process import installation
from server.process.log import Log
from server.process.log_reader import LogReader
from server.process.run import Run, begin
from server.process.spawn import spawn
from server.settings import Settings
from server.watch import probe, repository, unbuilt

KILL_AFTER = 10.0  # seconds beyond tritonserver's own exit timeout
WRITE_SECONDS = 1.0  # for the last answers to reach their clients


class TritonServer:
    """A tritonserver in a session of its own, so that a terminal's Ctrl-C reaches only its watcher.

    It drains when this process dies. Use it as a context manager, or call `start`, `wait_ready` and
    `stop`; all from the main thread, because the kernel takes the death of the thread that started
    a child for the death of the parent. Once it has ended and was waited for, `start` starts the
    next one.

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
        given = Settings(model_repository, **settings)
        self.settings = replace(given, endpoints=given.endpoints.resolved())
        self.endpoints = self.settings.endpoints
        self.control = Control(
            self.endpoints,
            self.settings.token,
            self.settings.plain_grpc,
            self.settings.load_timeout,
        )
        self._show = show
        self._colour = colour
        self.net = Net(say=show)
        self.log = self._new_log()
        self._run: Run | None = None
        self._process: subprocess.Popen[str] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._reader: LogReader | None = None
        self._deadline: float | None = None
        self._idle_since: float | None = None

    def _new_log(self) -> Log:
        return Log(self._show, raw=self.settings.verbose, colour=self._colour)

    def tolerate(self) -> None:
        """From the next start on serve the models that load, whatever becomes of the others."""
        self.settings = replace(self.settings, keep_going=True)

    def start(self) -> None:
        """Start tritonserver; returns at once.

        Raises:
            ServerError: it cannot be started, said in one sentence.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a server must be started from the main thread")
        found = installation.find()
        self.settings.check()
        self.log = self._new_log()
        self._deadline, self._idle_since = None, None
        self._guard, self._reader = None, None
        models = self._admit()
        for model in repository.models(self.settings.model_repository):
            repository.compile_sources(self.settings.model_repository / model)
        self._run = begin()
        try:
            try:
                self._process = spawn(found, self.settings, self._run, models)
                self._guard = self._run.guard()
                self._reader = self._read(self._process)
            finally:
                with suppress(OSError):  # from here on the lock is tritonserver's and its
                    os.close(self._run.lock)  # children's: who holds it is killed in the end
        except BaseException:
            self._abandon()
            raise

    def wait_ready(self, timeout: float | None = None) -> float:
        """Wait until the server and every model are ready, however long that takes.

        Returns:
            The seconds it took.

        Raises:
            ModelError: models failed to load; one line for each.
            ServerError: the server ended or `timeout` seconds passed. It is stopped then.
        """
        begun = time.monotonic()
        while not self.is_ready():
            if self.returncode is not None:
                raise self.log.why_it_ended(self.wait())
            if timeout is not None and time.monotonic() - begun > timeout:
                self.stop()
                raise ServerError(f"the server was not ready within {timeout:.0f} s")
            time.sleep(0.05)
        return time.monotonic() - begun

    def is_ready(self) -> bool:
        """Whether the server answers and all models are loaded."""
        ready = probe.is_ready(self.control, http=self.settings.http)
        if ready:
            self.run.hide_segments()
        return ready

    def request_stop(self, *, at_once: bool = False) -> None:
        """Ask the server to drain, or end it at once. Safe in a signal handler.

        A server that outstays its exit timeout by far is ended too.
        """
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
        if self._deadline is None:
            self._deadline = time.monotonic() + self.settings.exit_timeout + KILL_AFTER

    def wait(self) -> int:
        """Wait for the server's end and remove what it left.

        Returns:
            tritonserver's exit status, negative for a signal; 0 if it was never started.
        """
        if self._process is None:
            return 0
        while (code := self.returncode) is None:
            self.stop_if_drained()
            time.sleep(0.02)
        self._clean_up(self._process)
        return code if self._idle_since is None else 0

    def stop_if_drained(self) -> None:
        """To be called until it has ended, where Triton drains by itself."""
        if self.log.live == 0:
            self.stop_idle()

    def stop_idle(self) -> None:
        """End a server with nothing in flight, however long its clients would keep their
        connections. To be called until it has ended."""
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
            if self._deadline is None:
                self.request_stop()
        elif now - self._idle_since > WRITE_SECONDS:
            self.request_stop(at_once=True)

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
        if self._process is None:
            return None
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._process.kill()
        return self._process.poll()

    @property
    def run(self) -> Run:
        """What the run owns: prefix of its segments, private folder."""
        assert self._run is not None
        return self._run

    def _admit(self) -> list[str]:
        """The models to load: those that are built, and can be loaded without harm."""
        folder = self.settings.model_repository
        harmful, waiting = repository.harmful(folder), unbuilt.models(folder)
        self.log.failures.update(harmful)
        if harmful and not self.settings.keep_going:
            raise ModelError("\n".join(f"{name}  {why}" for name, why in sorted(harmful.items())))
        for recipe in sorted({*waiting.values()}):
            make = f"python -m build_scripts.build {recipe}"
            self._show(f"{recipe} is not built yet; it is loaded once that is done: {make}")
        models = sorted(repository.models(folder) - harmful.keys() - waiting.keys())
        if waiting and not models:
            raise ServerError(f"the models in {folder} are not built yet; run 'make build'")
        return models if harmful or waiting else ["*"]

    def _read(self, process: subprocess.Popen[str]) -> LogReader:
        loop = self.net["the log's reader"]
        return LogReader(process, self.log, loop, lambda: self._hide_token(process.pid))

    def _hide_token(self, pid: int) -> None:
        if not token.hide(pid, self.settings.token):
            self._show("warning: other users can see the admin token in the list of processes")

    def _abandon(self) -> None:
        """It could not be started as a whole."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(KILL_AFTER)
            self._clean_up(process)

    def _clean_up(self, process: subprocess.Popen[str]) -> None:
        """Take away what is left, as far as it goes: what stays is the next start's to remove."""
        with suppress(OSError):
            self.run.close()
        if self._guard is not None:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._guard.communicate(timeout=KILL_AFTER)  # dismissed, it kills who still lives
        if self._reader is not None:
            self._reader.close(KILL_AFTER)
