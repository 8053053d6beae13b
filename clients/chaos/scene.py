"""What a fault needs to know of the server, and whom it can hit."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from clients.chaos.journal import Journal
from clients.chaos.next_token import Streams
from clients.chaos.processes import ChaosError, Process
from clients.chaos.questions import Exam
from clients.chaos.target import Model, Status, Target
from clients.chaos.traffic import Connect


@dataclass(frozen=True)
class Harm:
    """
    Attributes:
        what: was hit.
        exam: of the model whose answers tell when it is over.
        at: the moment, of time.monotonic.
        healed: what /status says when it is over.
    """

    what: str
    exam: Exam
    at: float
    healed: Callable[[Status], bool]


@dataclass(frozen=True)
class Scene:
    """All that a fault may need.

    Attributes:
        behind: for each model that is asked, those that its requests pass through.
        rate: right answers a second that the load got in calm.
        freeze_seconds: shortest and longest.
        patience: seconds that a recovery may take.
        repository: where the server's models lie.
        streams: those that run.
    """

    target: Target
    exams: Sequence[Exam]
    behind: Mapping[str, Sequence[str]]
    connect: Connect
    journal: Journal
    order: random.Random
    rate: float
    freeze_seconds: tuple[float, float]
    patience: float
    repository: Path
    streams: Streams

    def any_exam(self) -> Exam:
        return self.order.choice(self.exams)


@dataclass(frozen=True)
class Victim:
    """A process of a model, and the exam that cannot be passed without it."""

    what: str
    model: str
    exam: Exam
    process: Process

    def hit(self, number: Signals) -> Harm:
        """Raises ChaosError if it has just ended by itself."""
        at = time.monotonic()
        if not self.process.send(number):
            raise ChaosError(f"{self.what} ended before it was hit")
        pid = self.process.pid
        return Harm(self.what, self.exam, at, lambda now: now.is_whole and not now.names(pid))


def any_rank(scene: Scene, model: str | None = None) -> Victim:
    """Of that model, or of any that the load needs."""
    return _any(scene, lambda each: [(f"rank {rank}", pid) for rank, pid in each.ranks], model)


def any_stub(scene: Scene) -> Victim:
    return _any(scene, lambda each: [("a stub", pid) for pid in each.stubs])


def _any(
    scene: Scene, processes: Callable[[Model], list[tuple[str, int]]], model: str | None = None
) -> Victim:
    status = scene.target.status()
    found = [
        (exam, name, what, pid)
        for exam in scene.exams
        for name in scene.behind[exam.model]
        for what, pid in processes(status.models[name])
        if model in (None, name)
    ]
    if not found:
        raise ChaosError("/status names no process to hit")
    exam, name, what, pid = scene.order.choice(found)
    return Victim(f"{what} of {name}", name, exam, Process.of(pid, status.watcher))


def tritonserver(scene: Scene) -> Victim:
    status = scene.target.status()
    if status.server is None:
        raise ChaosError("there is no tritonserver to hit")
    process = Process.of(status.server, status.watcher)
    return Victim("tritonserver", "", scene.any_exam(), process)
