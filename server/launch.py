"""One tritonserver: started, waited for, stopped, cleaned up after."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from server import child, health, installation
from server.endpoints import Endpoints
from server.errors import ModelError, ServerError
from server.log import Log
from server.run import Run, begin

KILL_AFTER = 10.0  # seconds beyond tritonserver's own exit timeout


class TritonServer:
    """A tritonserver of its own session, so that a terminal's Ctrl-C reaches only its watcher.

    It drains when this process dies. Use it as a context manager, or call `start`, `wait_ready` and
    `stop`; all from the main thread, because the kernel takes the death of the thread that started
    a child for the death of the parent.

    Args:
        model_repository: folder with one folder a model.
        endpoints: where to listen.
        options: any further options of tritonserver.
        environment: added to this process's own.
        keep_going: serve the models that did load, where others did not.
        complete_config: let models complete their configs; starts a stub more for each of them.
        exit_timeout: seconds that requests in flight are given at the end.
        show: takes the lines worth reading.
    """

    def __init__(
        self,
        model_repository: Path,
        *,
        endpoints: Endpoints | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        keep_going: bool = False,
        complete_config: bool = False,
        exit_timeout: int = 30,
        show: Callable[[str], None] = print,
        colour: bool = False,
    ) -> None:
        self.model_repository = model_repository
        self.endpoints = endpoints or Endpoints.from_environment(os.environ)
        self._show = show
        self.log = Log(show, raw=_is_verbose(options), colour=colour)
        self._options = list(options)
        self._environment = dict(environment or {})
        self._keep_going = keep_going
        self._complete_config = complete_config
        self.exit_timeout = exit_timeout
        self._deadline: threading.Timer | None = None
        self._process: subprocess.Popen[str] | None = None
        self._run: Run | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start tritonserver; returns at once.

        Raises:
            ServerError: it cannot be started, said in one sentence.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a server must be started from the main thread")
        found = installation.find()
        _check_repository(self.model_repository)
        self.endpoints.check()
        self._run = begin()
        backends = self._run.folder / "backends"
        found.assemble_backends(backends)
        options = [f"--backend-directory={backends}", f"--cache-directory={found.caches}"]
        self._process = self._spawn(
            found, [*options, *self._own_options(self._run), *self._options]
        )
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
        while not health.is_ready(self.endpoints, http="--allow-http=false" not in self._options):
            if self.returncode is not None:
                self.wait()
                raise self.why_it_ended()
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
            self._deadline = threading.Timer(self.exit_timeout + KILL_AFTER, self._process.kill)
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

    def _own_options(self, this_run: Run) -> list[str]:
        as_written = [] if self._complete_config else ["--disable-auto-complete-config"]
        keep_going = ["--exit-on-error=false", "--strict-readiness=false"]
        return [
            f"--model-repository={self.model_repository}",
            f"--exit-timeout-secs={self.exit_timeout}",
            f"--backend-config=python,shm-region-prefix-name={this_run.prefix}",
            f"--backend-config=python_mp,shm-region-prefix-name={this_run.prefix}",
            *self.endpoints.options(),
            *as_written,
            *(keep_going if self._keep_going else []),
        ]

    def _spawn(self, found: installation.Installation, options: list[str]) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-I", "-S", child.__file__, str(os.getpid())]
        environment = found.environment({**os.environ, **self._environment})
        return subprocess.Popen(
            [*launcher, str(found.binary), *options],
            env={**environment, "PYTHON_MP_RUNTIME_DIR": str(self.run.folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=[self.run.lock],
        )

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self.log.feed(line.rstrip("\n"))

    def _clean_up(self, process: subprocess.Popen[str]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.run.end():
            self._show(f"processes of this run still live; {self.run.folder} is left to them")
        elif self._reader is not None:
            self._reader.join()
            assert process.stdout is not None
            process.stdout.close()

    def why_it_ended(self) -> ServerError:
        """The error to raise about a server that ended by itself."""
        if self.log.failures:
            width = max(map(len, self.log.failures))
            lines = [f"{name:{width}}  {why}" for name, why in sorted(self.log.failures.items())]
            return ModelError("\n".join(lines))
        status = _status(self.returncode or 0)
        why = self.log.complaint or "\n".join(self.log.tail[-5:]).strip()
        return ServerError(f"tritonserver {status}: {why}" if why else f"tritonserver {status}")


def _status(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with {code}"


def _is_verbose(options: Sequence[str]) -> bool:
    return any(option.startswith("--log-verbose") for option in options)


def _check_repository(repository: Path) -> None:
    if not repository.is_dir():
        raise ServerError(f"there is no model repository at {repository}; see --model-repository")
    if repository == installation.PROJECT / "model_repository" and not any(
        repository.glob("*/*/manifest.json")
    ):
        raise ServerError(f"the models in {repository} are not built yet; run 'make build'")
    if not any(repository.glob("*/config.pbtxt")):
        raise ServerError(f"{repository} holds no model: no folder in it has a config.pbtxt")
