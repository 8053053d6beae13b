"""What each simulation has: a machine, stubs, what clients have asked, and time that passes."""

import gc
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

from .machine import Machine, Process
from .modules import here
from .ranks import Ranks
from .triton import InferenceRequest, Logger, Stub

REPLICAS = 2


@dataclass(eq=False, repr=False, kw_only=True)
class Asked:
    """One request, and whom it was sent to."""

    kind: str
    stub: Stub
    replica: int
    request: InferenceRequest
    arrived: float
    lost: bool = False
    """Its stub has died."""
    judged: bool = False

    @property
    def open(self) -> bool:
        return not self.request.answers and not self.lost

    @property
    def deadline(self) -> float:
        micro = self.request.microseconds
        return self.arrived + micro / 1e6 if micro else inf


A = TypeVar("A", bound=Asked)


class Simulation(ABC, Generic[A]):
    """
    Args:
        product: the modules under test.
        start_seconds: of a forkserver.
        where: of files; else in the usual place.
    """

    def __init__(
        self,
        product: SimpleNamespace,
        seed: int,
        start_seconds: float,
        computed: Callable[[Process, Any], None],
        where: str | None = None,
    ) -> None:
        self.machine = here.machine = Machine(seed)
        self.machine.on_end = self._ended
        self.folder = Path(tempfile.mkdtemp(prefix="simulated-", dir=where))
        os.environ["PYTHON_MP_RUNTIME_DIR"] = str(self.folder)
        Logger.errors = []
        self._product = product
        self.ranks = Ranks(product, start_seconds, computed)
        self.asked: list[A] = []

    @abstractmethod
    def check(self) -> None:
        """Whether all holds that must; after each step."""

    @abstractmethod
    def _ended(self, process: Process) -> None: ...

    def pass_time(self, seconds: float) -> None:
        self.machine.run(lambda: False, seconds)

    def wait(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        if not self.machine.run(done, seconds):
            open_ = [asked for asked in self.asked if asked.open]
            self._fail(f"{what} took more than {seconds} s; open: {open_}")

    def living(self, replica: int) -> list[Process]:
        """A replica's ranks, oldest first."""
        name = f"rank {replica}."
        return [p for p in self.machine.processes.values() if p.alive and p.name.startswith(name)]

    def close(self) -> None:
        self.machine.close()
        rmtree(self.folder)
        gc.collect(0)

    def _lose(self, stub: Stub) -> None:
        """It ends, as by SIGKILL: Triton fails what it had."""
        stub.process.end()
        for asked in self.asked:
            asked.lost |= asked.stub is stub and asked.open

    def _finalize(self, stub: Stub) -> None:
        """As Triton does where nothing is in flight any more, and nothing is left then."""
        call = stub.finalize()
        self.wait(lambda: call.done, 30, "finalize")
        if call.error:
            self._fail(f"finalize raised {call.error!r}")
        self.check()
        if left := [asked for asked in self.asked if asked.stub is stub and asked.open]:
            self._fail(f"{left[0]} was left behind by a stop")
        self.pass_time(1.0)
        self._end(stub)

    def _end(self, stub: Stub) -> None:
        """Triton has no more use for it."""
        left = [thread.name for thread in stub.process.threads if thread.name != "triton"]
        children = [child.name for child in stub.process.children if child.alive]
        if left or children:
            self._fail(f"{stub.process.name} has ended and left {left} {children}")
        stub.process.end(0)

    def _check_threads(self) -> None:
        for thread, error in self.machine.crashes:
            self._fail(f"thread {thread.process.name}/{thread.name} ended: {error!r}")

    def _fail(self, text: str) -> None:
        raise AssertionError(text)
