"""`python -m server` under faults: its own calls, not those of tritonserver below it."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.endpoints import Endpoints
from server.watch import stubs
from tests.osfaults.front import SETTLE_SECONDS
from tests.osfaults.subject import RETURN_SECONDS, SLACK_SECONDS, Subject, Trouble, wait
from tests.support.command import infer, variables
from tests.support.processes import ENVIRONMENT, children
from tests.support.python_models import add

# It waits for a signal, blocked from its birth on, so that strace is there before the first call.
GATED = """
import pathlib, signal, sys
pathlib.Path(sys.argv.pop()).touch()
signal.sigwait([signal.SIGUSR1])
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
from server import __main__
from server.watch import reconciler
reconciler.POLL_SECONDS = 0.1
sys.exit(__main__.main())
"""
ASK_SECONDS = 10.0
MODEL, LATE = "one", "late"


class Watcher(Subject):
    PHASES = ("start", "load", "stub", "server", "reload")
    HOLD_SECONDS = 1.5
    USUAL = ("start", "stub", "reload"), 6

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._repository = folder / "models"
        self._version = 1
        add(self._repository, MODEL)
        self._output = folder / "output"
        self._start_process()

    @property
    def pid(self) -> int:
        return self._process.pid

    def prepare(self, phase: str) -> None:
        if self._began and (phase == "start" or self._has_died):
            self.renew()  # After deaths in a row it waits longer and longer, as it should.
        if phase == "start":
            return
        if not self._began:
            self._open_gate()
        self._wait_served(3 * SLACK_SECONDS, "serve without a fault")
        if (self._repository / LATE).exists():
            shutil.rmtree(self._repository / LATE)
            wait(lambda: not self._has(LATE, 1), SLACK_SECONDS, "unload without a fault")

    def act(self, phase: str) -> None:
        if phase == "start":
            self._open_gate()
        elif phase == "load":
            add(self._repository, LATE)
        elif phase == "reload":
            publish(self._repository / MODEL, self._version + 1)
            self._version += 1
        else:
            self._has_died = True
            triton, stub = self._below()
            os.kill(triton if phase == "server" else stub, signal.SIGKILL)

    def is_through(self, phase: str) -> bool:
        return self._is_served(phase)

    @property
    def _has_ended(self) -> bool:
        return self._process.poll() is not None

    def recover(self, phase: str) -> None:
        limit = RETURN_SECONDS + SLACK_SECONDS
        wait(lambda: self._has_ended or self._is_served(phase), limit, "serve again")
        if not self._has_ended:
            return
        if phase != "start":
            raise Trouble(f"it ended with {self._process.returncode}")
        self._check_last_words()
        self._start_process()
        self._open_gate()
        self._wait_served(limit, "start without a fault")

    def log(self) -> str:
        return self._output.read_text(errors="replace")[-3000:]

    def renew(self) -> None:
        self.close()
        shutil.rmtree(self._repository / LATE, ignore_errors=True)
        self._start_process()

    def close(self) -> None:
        if self._began and not self._has_ended:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(SETTLE_SECONDS)
        self._process.kill()
        self._process.wait()

    # -- its process --------------------------------------------------------------------------

    def _start_process(self) -> None:
        self._began = self._has_died = False
        self._endpoints = Endpoints.free()
        gate = self.folder / "gate"
        gate.unlink(missing_ok=True)
        with self._output.open("w") as output, blocked(signal.SIGUSR1):
            self._process = subprocess.Popen(
                [sys.executable, "-c", GATED, f"--model-repository={self._repository}", gate],
                cwd=self.folder,
                env=os.environ
                | variables(self._endpoints)
                | ENVIRONMENT
                | {"ADMIN_TOKEN": "known-to-the-tests"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        wait(gate.exists, SLACK_SECONDS, "come to its gate")

    def _open_gate(self) -> None:
        self._began = True
        self._process.send_signal(signal.SIGUSR1)

    def _wait_served(self, seconds: float, what: str) -> None:
        wait(lambda: self._is_served(""), seconds, what)

    def _is_served(self, phase: str) -> bool:
        """/ready says so, and so does an answer of each model."""
        is_late = phase == "load" and not self._has(LATE, 1)
        return not is_late and self._is_ready() and self._has(MODEL, self._version)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._endpoints.health_url}/ready", timeout=2):
                return True
        except OSError:
            return False

    def _has(self, model: str, version: int) -> bool:
        try:
            return infer(self._endpoints, 7, f"{model}/versions/{version}", ASK_SECONDS) == 7
        except OSError:
            return False

    def _check_last_words(self) -> None:
        """A sentence, or where a module could not be read Python's own."""
        said, status = self.log().strip(), self._process.returncode
        if status <= 0 or ("Traceback" in said and "in <module>" not in said):
            raise Trouble(f"it ends with {status} and without a sentence")

    def _below(self) -> tuple[int, int]:
        """tritonserver's process id, and its stub's of the model."""
        triton = children(self.pid)[0]
        return triton, max(stub.pid for stub in stubs.living(triton) if stub.model == MODEL)


@contextmanager
def blocked(number: signal.Signals) -> Iterator[None]:
    """A process that is started within it has the signal blocked from its beginning."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def publish(model: Path, number: int) -> None:
    """By one rename, as the build scripts do it."""
    draft = model / ".building-test"
    shutil.copytree(model / "1", draft, ignore=shutil.ignore_patterns("__pycache__"))
    draft.rename(model / str(number))
