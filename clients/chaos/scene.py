"""What a fault needs to know of the server, and whom it can hit."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from clients.chaos.journal import Journal
from clients.chaos.next_token import Streams
from clients.chaos.processes import ChaosError, Process, agent_of
from clients.chaos.questions import Exam
from clients.chaos.target import Model, Rank, Status, Target
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
    """Of that model, or of any that the load needs; on another host, too, if that is one of this
    machine's: a container, a network namespace."""
    return _any(
        scene,
        lambda now, each: [
            (str(rank), process) for rank in each.ranks if (process := _of_rank(now, rank))
        ],
        model,
    )


def any_stub(scene: Scene) -> Victim:
    return _any(
        scene, lambda now, each: [("a stub", Process.of(pid, now.watcher)) for pid in each.stubs]
    )


def _of_rank(now: Status, rank: Rank) -> Process | None:
    """None if it is a process of another machine."""
    if not rank.host:
        return Process.of(rank.pid, now.watcher)
    agent = agent_of(rank.pid, rank.host)
    return Process.of(rank.pid, agent) if agent else None


def _any(
    scene: Scene,
    processes: Callable[[Status, Model], list[tuple[str, Process]]],
    model: str | None = None,
) -> Victim:
    status = scene.target.status()
    found = [
        (exam, name, what, process)
        for exam in scene.exams
        for name in scene.behind[exam.model]
        if model in (None, name)
        for what, process in processes(status, status.models[name])
    ]
    if not found:
        raise ChaosError("/status names no process to hit")
    exam, name, what, process = scene.order.choice(found)
    return Victim(f"{what} of {name}", name, exam, process)


def tritonserver(scene: Scene) -> Victim:
    status = scene.target.status()
    if status.server is None:
        raise ChaosError("there is no tritonserver to hit")
    process = Process.of(status.server, status.watcher)
    return Victim("tritonserver", "", scene.any_exam(), process)
