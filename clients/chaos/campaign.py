"""A run: learn what is right, measure, load and harm, measure again, judge."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clients.chaos.commit import commit, schedule, told
from clients.chaos.exchange import Connection
from clients.chaos.faults import KINDS
from clients.chaos.journal import Journal, Outcome
from clients.chaos.leaks import Bounds, Usage
from clients.chaos.next_token import Streams, Waits, prefill_rate
from clients.chaos.processes import ChaosError
from clients.chaos.questions import Exam, Question
from clients.chaos.results import Report
from clients.chaos.scene import Scene
from clients.chaos.target import Target
from clients.chaos.traffic import Load, Probe
from clients.chaos.verdict import Committed, judge
from clients.connection import Protocol

CALM_SECONDS = 2.0  # in which the load's connections go
SETTLE_SECONDS = 10.0  # at most, until what faults needed has been given back


@dataclass(frozen=True)
class Plan:
    """What the operator asked for; times in seconds."""

    models: Sequence[str]
    faults: Sequence[str]
    seconds: float
    times: int
    interval: float
    warm_up: float
    clients: int
    seed: int
    deadline: float
    patience: float
    tolerance: float
    tokens: int
    freeze_seconds: tuple[float, float]
    bounds: Bounds
    urls: dict[Protocol, str]
    repository: Path


class Run:
    """
    Args:
        say: takes a line about what has just happened.
        doing: takes what is happening now.
    """

    def __init__(
        self,
        plan: Plan,
        target: Target,
        journal: Journal,
        say: Callable[[str], None],
        doing: Callable[[str], None],
    ) -> None:
        self._plan, self._target, self._say, self._doing = plan, target, say, doing
        self.journal = journal
        self.interrupted = False
        self._committed: list[Committed] = []
        self._streams = Streams()

    def __call__(self) -> Report:
        """Raises ChaosError and QuestionError when it cannot begin."""
        plan = self._plan
        exams = self._learn()
        scene, rates = self._scene(exams, self._warm_up(exams)), [self._prefill(exams, 0)]
        if "flood" in plan.faults:  # a server may keep what it needed at its peak
            with self._under_load(exams) as probes:
                self._commit("flood", scene, probes)
        self._doing("calm")
        time.sleep(CALM_SECONDS)
        before, began = Usage.of(self._target.status()), time.monotonic()
        try:
            with self._under_load(exams) as probes:
                self._harm(scene, probes, began + plan.seconds)
        except KeyboardInterrupt:
            self.interrupted = True
            self._say("interrupted")
        seconds = time.monotonic() - began
        self._doing("calm")
        after, leaks = self._settle(before)
        rates.append(self._prefill(exams, 1))
        self.journal.close()
        verdict = judge(self.journal.records, self._committed, self._wanted())
        waits = Waits(min(rates), self._streams.struck) if all(rates) else None
        verdict.findings.extend([*leaks, *(waits.findings() if waits else [])])
        return Report(
            seconds, plan.seed, self.journal, self._committed, verdict, before, after, waits
        )

    def _learn(self) -> list[Exam]:
        self._doing("learning what is right")
        plan, connection = self._plan, self._connect("grpc")
        exams = [
            Exam(self._target.metadata(model), plan.tolerance, plan.seed, plan.tokens)
            for model in plan.models
        ]
        for exam in exams:
            exam.learn(connection.ask)
        connection.close()
        return exams

    def _warm_up(self, exams: Sequence[Exam]) -> float:
        """Right answers a second under the load alone."""
        self._doing("warming up")
        with self._under_load(exams):
            time.sleep(self._plan.warm_up)
        rate = self.journal.counts[Outcome.RIGHT] / self._plan.warm_up
        self._say(f"{rate:.0f} right answers a second without faults")
        return max(rate, 1.0)

    def _prefill(self, exams: Sequence[Exam], turn: int) -> float:
        """Tokens a second, of as many prompts at once as there are clients; 0 without streams."""
        asks = [
            partial(self._ask_once, exam.long(self._plan.clients * turn + number))
            for exam in exams
            if exam.streams
            for number in range(self._plan.clients)
        ]
        return prefill_rate(self._streams, asks) if asks else 0.0

    def _ask_once(self, question: Question) -> None:
        with closing(self._connect("grpc")) as connection:
            connection.ask(question)

    def _scene(self, exams: Sequence[Exam], rate: float) -> Scene:
        plan = self._plan
        return Scene(
            target=self._target,
            exams=exams,
            behind={exam.model: self._target.behind(exam.model) for exam in exams},
            connect=self._connect,
            journal=self.journal,
            order=random.Random(plan.seed),
            rate=rate,
            freeze_seconds=plan.freeze_seconds,
            patience=plan.patience,
            repository=plan.repository,
            streams=self._streams,
        )

    @contextmanager
    def _under_load(self, exams: Sequence[Exam]) -> Iterator[dict[str, Probe]]:
        """A probe for each model."""
        plan = self._plan
        with ExitStack() as stack:
            stack.enter_context(Load(exams, self._connect, self.journal, plan.clients, plan.seed))
            yield {
                exam.model: stack.enter_context(Probe(exam, self._connect, self.journal, plan.seed))
                for exam in exams
            }

    def _connect(self, protocol: Protocol) -> Connection:
        return Connection(protocol, self._plan.urls[protocol], self._plan.deadline, self._streams)

    def _harm(self, scene: Scene, probes: dict[str, Probe], until: float) -> None:
        """Until that moment, and until each kind has had all its turns."""
        least = self._plan.times * len(self._plan.faults)
        for count, kind in enumerate(schedule(self._plan.faults, scene.order)):
            if count >= least and time.monotonic() >= until:
                return
            self._doing("load")
            time.sleep(self._plan.interval)
            self._commit(kind, scene, probes)

    def _commit(self, kind: str, scene: Scene, probes: dict[str, Probe]) -> None:
        self._doing(kind)
        began = time.monotonic()
        try:
            fault = commit(kind, scene, probes)
        except KeyboardInterrupt:
            may_refuse = KINDS[kind].may_refuse
            self._committed.append(
                Committed(kind, "", began, math.inf, may_refuse, broken_off=True)
            )
            raise
        self._committed.append(fault)
        self._say(told(fault))

    def _wanted(self) -> Sequence[str]:
        done = {fault.kind for fault in self._committed}
        wanted = self._plan.faults
        return [kind for kind in wanted if kind in done] if self.interrupted else wanted

    def _settle(self, before: Usage) -> tuple[Usage, list[str]]:
        """What is held once it is calm, and what of it is a leak: what stays."""
        until = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                usage = Usage.of(self._target.status())
                leaks = usage.leaks(before, self._plan.bounds)
            except (ChaosError, OSError) as error:  # a process ended between two looks
                usage, leaks = before, [f"cannot be measured afterwards: {error}"]
            if not leaks or time.monotonic() > until:
                return usage, leaks
            time.sleep(0.5)
