"""The front under faults: a process with the stubs of a model, its load, the death of a rank, and
its unload, which together with a load is a reload."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.osfaults.board import Board
from tests.osfaults.cases import Case
from tests.osfaults.subject import RETURN_SECONDS, SLACK_SECONDS, Subject, Trouble, wait
from tests.support.processes import ENVIRONMENT, alive, rank_processes

SETTLE_SECONDS = 20.0
SPARE_FILES = 3
"""Connections come and go; a group that is left open has more."""


class Front(Subject):
    """Two replicas of two ranks, which clients ask all the time."""

    PHASES: tuple[str, ...] = ("load", "death", "unload")
    HOLD_SECONDS = 1.0
    USUAL = PHASES, 9

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._repository = folder / "models" / "echo"
        (self._repository / "1").mkdir(parents=True, exist_ok=True)
        self._runtime = folder / "run"
        self._runtime.mkdir(mode=0o700, exist_ok=True)
        self._stubs = self._files = 0
        self._start_process()

    @property
    def pid(self) -> int:
        return self._process.pid

    def prepare(self, phase: str) -> None:
        if phase == "load":
            if self._loaded:
                self.renew()
            return
        if not self._loaded:
            self._load()
        wait(self._serves, SLACK_SECONDS, "serve without a fault")
        self._files = self._files or self._descriptors + SPARE_FILES

    def act(self, phase: str) -> None:
        if phase == "load":
            self._order_load()
        elif phase == "unload":
            self._loaded = False
            self._board.ask("unload")
        else:
            os.kill(rank_processes(self._process.pid)[0, 0], signal.SIGKILL)

    def is_through(self, phase: str) -> bool:
        return self._serves() if phase == "death" else self._board.reply(0) is not None

    def recover(self, phase: str) -> None:
        error = "" if phase == "death" else self._said(phase)
        if phase == "unload":
            self._leave()
        if phase == "unload" or error:
            self.renew()
            self._load()
        limit = RETURN_SECONDS + SLACK_SECONDS
        wait(self._serves, limit, f"serve again; were {self._board.counts}")

    def settle(self, case: Case) -> None:
        self._board.ask("settle")
        if self._board.reply(SETTLE_SECONDS) is None:
            raise Trouble(f"requests without an answer: {self._board.counts}")
        if self._board.counts[3]:
            raise Trouble(f"wrong answers: {self._board.counts}")
        if case.call == "close":
            self._files = 0  # What was not closed stays open.
        elif case.phase == "death":
            wait(lambda: self._descriptors <= self._files, RETURN_SECONDS, "close all again")

    def log(self) -> str:
        return self._stderr.read_text()[-20000:]

    def renew(self) -> None:
        """As Triton ends the stubs of a model that was unloaded or could not be loaded."""
        self.close()
        self._start_process()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    # -- its process --------------------------------------------------------------------------

    def _start_process(self) -> None:
        self._stubs += 1
        self._loaded = False
        self._files = 0
        self._board = Board(self.folder / f"board-{self._stubs}")
        self._stderr = self.folder / f"stderr-{self._stubs}"
        program = (sys.executable, "-m", "tests.osfaults.stub")
        with self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [*program, self.folder / f"board-{self._stubs}", self._repository],
                cwd=self.folder,
                env=os.environ | ENVIRONMENT | {"PYTHON_MP_RUNTIME_DIR": str(self._runtime)},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        self._board.ask("nothing")
        assert self._board.reply(SETTLE_SECONDS) is not None, "the stub does not start"

    def _order_load(self) -> None:
        self._loaded = True
        self._board.ask("load")

    def _load(self) -> None:
        self._order_load()
        if error := self._said("load"):
            raise Trouble(f"does not load without a fault: {error}")

    def _said(self, phase: str) -> str:
        """The end of a load or an unload: its error."""
        error = self._board.reply(RETURN_SECONDS + SLACK_SECONDS)
        if error is None:
            raise Trouble(f"the {phase} does not end, or did: {self._process.poll()}")
        return error

    def _leave(self) -> None:
        """As Triton ends a stub that was unloaded: nothing of it may stay."""
        ranks = list(rank_processes(self._process.pid).values())
        self.renew()
        wait(lambda: not any(map(alive, ranks)), RETURN_SECONDS, "ranks end with their stub")

    def _serves(self) -> bool:
        """Both replicas do, and have answered something that was asked after the cause's end."""
        if self._process.poll() is not None:
            raise Trouble(f"its process ended with {self._process.returncode}")
        *_, first, second, one, other = self._board.counts
        return bool(one and other) and min(first, second) > self.cause_ended

    @property
    def _descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))


class Forkserver(Front):
    """The process that forks the ranks: its own calls, when one of them dies."""

    PHASES = ("death",)
    USUAL = PHASES, 6
    FOLLOW = ()  # Ranks are forks of it.

    @property
    def pid(self) -> int:
        rank = rank_processes(self._process.pid)[0, 0]
        return int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
