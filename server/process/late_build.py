"""Builds models behind what is served. The watcher loads them when they are there."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from python_mp.machine.backoff import after
from python_mp.machine.net import Net
from server.errors import ServerError
from server.process.beside import Beside, spawn
from server.watch.unbuilt import RECIPE

DELAYS = (10.0, 60.0, 300.0, 900.0)  # seconds; what failed may fail again, and cost as much
LOWEST = 19  # of priority
FIRST = 1000  # to be killed where memory runs out


class LateBuild(Beside):
    """A context in which `python -m build_scripts.build NAMES` runs, with the lowest priority, from
    the first call of `serving` on; again where it fails.

    Args:
        repository: the model repository.
        names: of the recipes.

    Raises:
        ServerError: there is no such recipe, or nothing here to build with.
    """

    KILL_AFTER = 5.0

    def __init__(
        self, repository: Path, names: Sequence[str], net: Net, say: Callable[[str], None]
    ) -> None:
        super().__init__("the build", net, say)
        self._repository, self._names = repository, names
        self._failures = 0
        self._due = threading.Event()
        for name in names:
            if not (repository / name / RECIPE).is_file():
                raise ServerError(f"--build {name}: there is no {repository / name / RECIPE}")
        if not find_spec("build_scripts"):
            raise ServerError("--build needs the project's build_scripts, which are not here")

    def serving(self, _: object) -> None:
        """Now it may take what is left of the processors."""
        self._due.set()

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._due.set()
        super().__exit__(*error)

    def start(self) -> subprocess.Popen[str]:
        where = f"--repository={self._repository}"
        process = spawn(
            "build_scripts.build", "--brief", where, *self._names, output=subprocess.PIPE
        )
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST)
            Path(f"/proc/{process.pid}/oom_score_adj").write_text(str(FIRST))
        return process

    def follow(self, process: subprocess.Popen[str]) -> int:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._say(f"build: {line.rstrip().removeprefix('build: ')}")
        return process.wait()

    def ended(self, code: int) -> float | None:
        if not code:
            return None
        self._failures += 1
        pause = after(self._failures, DELAYS)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else "failed"
        what = ", ".join(self._names)
        again = f"what is served goes on; next try in {pause:.0f} s"
        self._say(f"the build of {what} {how}; {again}")
        return pause

    def _live(self) -> None:
        self._due.wait()
        super()._live()
