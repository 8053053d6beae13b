"""`python -m server` under faults: its own calls, not those of tritonserver below it."""

import os
import shutil
import signal
from pathlib import Path

from tests.osfaults.subject import RETURN_SECONDS, SLACK_SECONDS, Subject, Trouble, wait
from tests.support.command import Command
from tests.support.python_models import add

PROGRAM = """
import sys
from server import __main__
from server.watch import reconciler
reconciler.POLL_SECONDS = 0.1
sys.exit(__main__.main())
"""
MODEL, LATE = "one", "late"


class Watcher(Subject):
    PHASES = ("load", "stub", "server", "reload")
    HOLD_SECONDS = 1.5
    USUAL = ("stub", "server", "reload"), 3

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._repository = folder / "models"
        self._version = 1
        add(self._repository, MODEL)
        self._start()

    @property
    def pid(self) -> int:
        return self._command.process.pid

    def prepare(self, phase: str) -> None:
        if self._has_died:
            self.renew()  # After deaths in a row it waits longer and longer, as it should.
        wait(lambda: self._is_served(""), 3 * SLACK_SECONDS, "serve without a fault")
        if (self._repository / LATE).exists():
            shutil.rmtree(self._repository / LATE)
            wait(
                lambda: not self._command.answers(7, LATE), SLACK_SECONDS, "unload without a fault"
            )

    def act(self, phase: str) -> None:
        if phase == "load":
            add(self._repository, LATE)
        elif phase == "reload":
            publish(self._repository / MODEL, self._version + 1)
            self._version += 1
        else:
            self._has_died = True
            command = self._command
            below = command.triton if phase == "server" else max(command.stubs(MODEL).values())
            os.kill(below, signal.SIGKILL)

    def is_through(self, phase: str) -> bool:
        return self._is_served(phase)

    def recover(self, phase: str) -> None:
        wait(lambda: self._is_served(phase), RETURN_SECONDS + SLACK_SECONDS, "serve again")

    def log(self) -> str:
        return self._command.end(signal.SIGTERM)[1][-3000:]

    def renew(self) -> None:
        self.close()
        shutil.rmtree(self._repository / LATE, ignore_errors=True)
        self._start()

    def close(self) -> None:
        self._command.end(signal.SIGTERM)

    # -- its process --------------------------------------------------------------------------

    def _start(self) -> None:
        self._has_died = False
        self._command = Command(self._repository, program=("-c", PROGRAM))

    def _is_served(self, phase: str) -> bool:
        """/ready says so, and so does an answer of each model."""
        if (status := self._command.process.poll()) is not None:
            raise Trouble(f"it ended with {status}")
        models = [f"{MODEL}/versions/{self._version}", *([LATE] if phase == "load" else [])]
        try:
            return self._command.is_ready and all(self._command.answers(7, m) for m in models)
        except OSError:
            return False


def publish(model: Path, number: int) -> None:
    """By one rename, as the build scripts do it."""
    draft = model / ".building-test"
    shutil.copytree(model / "1", draft, ignore=shutil.ignore_patterns("__pycache__"))
    draft.rename(model / str(number))
