"""What must hold of replicas that answer a request by one batch, whatever happens to them."""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from errno import EMFILE
from math import inf
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.support.triton_stub import TritonError

from .machine import Process
from .numbered import EACH, MOST_TOKENS, POISON, Numbered, expected, number_of
from .ranks import EXIT, HANG, RAISE, SEGFAULT
from .simulated import Simulation
from .triton import Arrived, Logger, Stub

MOST_WAITING = 12
CALL_SECONDS, LATE_SECONDS = 2.0, 1.5  # A peer that has it is asked for it once a second.
RESTART_SECONDS, ANSWER_SECONDS = 15.0, 17.0
REMEMBERED_SECONDS = 59.0
HEARD_SECONDS = 3.0  # What could not be told is told again within it.
_CONNECTIONS = 4
"""More of anything than in the beginning: what a connection to a peer, kept open, may take."""
_MEMORY = "/dev/shm"


class FrontInvariants(Simulation[Numbered]):
    """
    Args:
        slots: batches that a replica may have in hand.
    """

    def __init__(
        self, product: SimpleNamespace, seed: int, start_seconds: float, slots: int
    ) -> None:
        where = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        super().__init__(product, seed, start_seconds, self._computed, where)
        self._slots = slots
        self.trouble: dict[int, float] = defaultdict(float)
        """When something last happened to a replica that may delay its answers."""
        self.attacks: list[float] = []
        """When a rank was killed or stopped from outside."""
        self.poison: dict[int, float] = {}
        """By content: since when a client knows, and so all replicas do."""
        self._deaf = 0.0
        """When last a replica could not hear, or not tell."""
        self.refuses: set[int] = set()
        """Replicas that may say that they do not serve."""
        self._commits: Counter[int] = Counter()
        self._last_commit: dict[int, float] = defaultdict(float)
        self._given: set[int] = set()
        """What any rank has seen."""
        self._wrong: list[str] = []
        self.stubs: dict[int, Stub] = {}
        self._quiet: Counter[str] = Counter()

    @property
    def deaf(self) -> float:
        processes = [stub.process for stub in self.stubs.values()]
        if any(process.stopped for process in processes):
            self._deaf = self.machine.now
        return max(self._deaf, *(process.lacked for process in processes), 0.0)

    def check(self) -> None:
        self._fail_loads()
        self._check_threads()
        for text in self._wrong + [text for text in Logger.errors if _is_bug(text)]:
            self._fail(text)
        for asked in self.asked:
            self._check_asked(asked)
        for replica, stub in self.stubs.items():
            if stub.model and not stub.process.stopped:
                self._check_replica(replica, stub)

    def _fail_loads(self) -> None:
        for replica, stub in list(self.stubs.items()):
            if stub.loading.error:
                if self.trouble[replica] < stub.loading.began:
                    self._fail(f"replica {replica} could not be loaded: {stub.loading.error!r}")
                del self.stubs[replica]
                self._end(stub)

    def _check_asked(self, asked: Numbered) -> None:
        answers, what = asked.request.answers, f"request {asked}"
        for fault in asked.request.faults:
            self._fail(f"{what}: {fault}")
        if len(answers) > 1:
            self._fail(f"{what} was answered {len(answers)} times: {answers}")
        if answers and not asked.judged:
            asked.judged = True
            if fault := self._judge(asked, answers[0]):
                self._fail(f"{what}: {fault}")
        if asked.open and self._overdue(asked):
            self._fail(f"{what} has no answer after {self.machine.now - asked.arrived:.1f} s")

    def _overdue(self, asked: Numbered) -> bool:
        if asked.stub.process.stopped or asked.stub.calls:
            return False
        since = max(asked.arrived, *self.trouble.values())
        return self.machine.now - since > ANSWER_SECONDS

    def _judge(self, asked: Numbered, answer: Arrived) -> str:
        if answer.error is None:
            assert answer.outputs is not None
            if asked.kind not in ("good", "slow") or not asked.fits:
                return "it was answered"
            wanted = expected(asked.request.inputs)
            same = np.array_equal(answer.outputs["Y"], wanted)
            return "" if same else f"got {answer.outputs['Y'].tolist()}, not {wanted.tolist()}"
        code, text = answer.error.code, str(answer.error)
        # What raises alone ends one group an answer, and may try again.
        twice = asked.kind != "raises" or "two groups" in text
        if code == TritonError.INTERNAL and twice:
            self.poison.setdefault(asked.number, answer.at)
        allowed = {
            TritonError.INVALID_ARG: asked.kind in ("refused", "malformed") or not asked.fits,
            TritonError.CANCELLED: asked.request.cancelled,
            TritonError.UNAVAILABLE: self._may_be_unavailable(asked, text, answer.at),
            TritonError.INTERNAL: self._may_fail(asked),
        }
        return "" if allowed[code] else f"{code} {text}"

    def _may_be_unavailable(self, asked: Numbered, text: str, at: float) -> bool:
        if "time-out" in text:
            return at >= asked.deadline
        return "queue is full" in text or asked.replica in self.refuses

    def _may_fail(self, asked: Numbered) -> bool:
        if asked.kind in POISON:
            return bool(self._commits[asked.number])
        return sum(asked.arrived <= attack for attack in self.attacks) >= 2

    def _check_replica(self, replica: int, stub: Stub) -> None:
        front, now = stub.model._instance._replica, self.machine.now
        waiting = list(front._schedule._waiting)
        where = f"replica {replica}"
        # Bounds hold when a request comes; what was with the ranks may come back beyond them.
        held = sum(
            not (r.suspicion or r.continues or number_of(r) in self._given)
            for r in (*waiting, *front._schedule._lent)
        )
        if held > MOST_WAITING:
            self._fail(f"{where}: {held} requests in a queue of {MOST_WAITING}")
        times = [request.arrived for request in waiting]
        if times != sorted(times):
            self._fail(f"{where}: the queue is out of order")
        # A peer that was frozen may lend what is late already: it is late here from its coming.
        late = [r for r in waiting if max(r.deadline, r.arrived) < now - LATE_SECONDS]
        if late and now - self.trouble[replica] > LATE_SECONDS:
            self._fail(f"{where}: a request waits {now - late[0].deadline:.1f} s past its time-out")
        if front._group and len(front._group.flights._flights) > self._slots:
            self._fail(
                f"{where}: {len(front._group.flights._flights)} batches in {self._slots} slots"
            )
        if self.ranks.failing_starts.get(replica) or stub.process.missing_descriptors:
            self.trouble[replica] = now
        if not front.serves and now - self.trouble[replica] > RESTART_SECONDS:
            self._fail(f"{where} has not served for {now - self.trouble[replica]:.0f} s")
        for call in stub.calls[:1]:
            if now - max(call.began, self.trouble[replica]) > CALL_SECONDS:
                self._fail(f"{where}: execute has not returned for {now - call.began:.1f} s")

    def _held(self) -> Counter[str]:
        """What a leak would make grow."""
        held = Counter(f"threads of {thread.process.name}" for thread in self.machine.threads)
        for stub in self.stubs.values():
            held[f"sockets of {stub.process.name}"] = len(stub.process.sockets)
            held[f"descriptors of {stub.process.name}"] = len(stub.process.descriptors)
        return held

    def _compare_held(self) -> None:
        for what, number in self._held().items():
            if number > self._quiet[what] + _CONNECTIONS:
                self._fail(f"{what}: {self._quiet[what]} in the beginning, now {number}")

    def _computed(self, rank: Process, inputs: Mapping[str, Any]) -> None:
        """Ranks tell what they are given."""
        tokens = len(inputs["X"])
        if tokens > MOST_TOKENS:
            self._wrong.append(f"{rank.name} was given a batch of {tokens} tokens")
        firsts = inputs["X"][inputs["cu_seqlens"][:-1], 0]
        numbers = (firsts // EACH).tolist()
        self._given.update(numbers)
        for number, fault in zip(numbers, inputs["FAULT"], strict=True):
            kind = int(fault[0])
            if kind in (RAISE, EXIT, SEGFAULT, HANG) and fault[1] == int(rank.name[-1]):
                self._check_poison(rank, number)
                self._commits[number] += 1
                self._last_commit[number] = self.machine.now
                return

    def _check_poison(self, rank: Process, number: int) -> None:
        if self.machine.now > self._last_commit[number] + REMEMBERED_SECONDS:
            self.poison.pop(number, None)
        since = max(self.poison.get(number, inf), self.deaf + HEARD_SECONDS)
        asks = [asked for asked in self.asked if asked.number == number and asked.open]
        if asks and all(since < asked.arrived for asked in asks):
            self._wrong.append(f"{rank.name} was given request {number}, which was poison")

    def _ended(self, process: Process) -> None:
        if process.name.startswith("rank "):
            self.trouble[int(process.name[5])] = self.machine.now


def _is_bug(logged: str) -> bool:
    """An error that nobody expected, other than the one that is injected."""
    return "Traceback" in logged and os.strerror(EMFILE) not in logged
