"""Two replicas of one model on a simulated machine, their clients, and what must hold of both.

A request's first number says whose it is, so an answer can be compared with what was asked.
"""

import gc
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from errno import EMFILE
from math import inf
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.support.configs import INT32, raw_config, tensor
from tests.support.triton_stub import TritonError, arguments

from .machine import Machine, Process
from .modules import here
from .ranks import EXIT, HANG, RAISE, REFUSE, SEGFAULT, SLEEP, Ranks
from .triton import Arrived, Call, InferenceRequest, Logger, Outputs, Stub

REPLICAS = 2
MOST_TOKENS, MOST_WAITING = 8, 12
HANG_SECONDS = 5
SLOW_MILLISECONDS = 20
CALL_SECONDS, LATE_SECONDS = 2.0, 1.5  # A peer that has it is asked for it once a second.
RESTART_SECONDS, ANSWER_SECONDS = 15.0, 17.0
REMEMBERED_SECONDS = 59.0
HEARD_SECONDS = 3.0  # What could not be told is told again within it.
KINDS = {
    "good": 0,
    "slow": SLEEP,
    "refused": REFUSE,
    "malformed": 0,
    "raises": RAISE,
    "exits": EXIT,
    "crashes": SEGFAULT,
    "hangs": HANG,
}
POISON = ("raises", "exits", "crashes", "hangs")
_CONNECTIONS = 4
"""More of anything than in the beginning: what a connection to a peer, kept open, may take."""
_MEMORY = "/dev/shm"
_NUMBERS = 1000
"""Of each content: its rows hold number * 1000 + position."""


@dataclass(eq=False, repr=False)
class Asked:
    """One request, its content's number, and whom it was sent to."""

    number: int
    kind: str
    stub: Stub
    replica: int
    request: InferenceRequest
    arrived: float
    judged: bool = False
    lost: bool = False
    """Its stub has died."""

    def __repr__(self) -> str:
        return f"{self.number} ({self.kind}, to {self.replica})"

    @property
    def open(self) -> bool:
        return not self.request.answers and not self.lost

    @property
    def fits(self) -> bool:
        return bool(self.request.inputs["X"].shape[1] <= MOST_TOKENS)

    @property
    def deadline(self) -> float:
        return self.arrived + self.request.microseconds / 1e6


def content(number: int, kind: str, width: int, lengths: Sequence[int], rank: int) -> Outputs:
    longest, count = max(lengths, default=0), len(lengths)
    x = np.arange(count * longest * width, dtype=np.int32).reshape(count, longest, width)
    faults = np.zeros((count, 3), np.int32)
    faults[:1] = KINDS[kind], rank, SLOW_MILLISECONDS if kind == "slow" else 3
    inputs = {"X": x + number * _NUMBERS, "FAULT": faults}
    if len(set(lengths)) > 1 or kind == "malformed":
        wrong = kind == "malformed"
        inputs["LENGTHS"] = np.array([[n + wrong * longest] for n in lengths], np.int32)
    return inputs


def expected(inputs: Mapping[str, Any]) -> Any:
    """What a model that returns its input makes of it alone."""
    y = inputs["X"].copy()
    if "LENGTHS" in inputs:
        y[np.arange(y.shape[1]) >= inputs["LENGTHS"]] = 0
    return y


def _config(tensor_parallel: int, pipeline: int) -> dict[str, Any]:
    return raw_config(
        "simulated",
        [
            tensor("X", INT32, -1, -1, allow_ragged_batch=True),
            tensor("FAULT", INT32, 3),
            tensor("LENGTHS", INT32, 1, optional=True),
        ],
        [tensor("Y", INT32, -1, -1)],
        replicas=REPLICAS,
        max_batch_size=8,
        engine="echo",
        tensor_parallel_size=tensor_parallel,
        pipeline_parallel_size=pipeline,
        lengths="LENGTHS",
        max_batch_tokens=MOST_TOKENS,
        max_batch_bytes=4096,
        max_queue_requests=MOST_WAITING,
        hang_seconds=HANG_SECONDS,
    )


class World:
    def __init__(
        self,
        product: SimpleNamespace,
        seed: int,
        tensor_parallel: int = 1,
        pipeline: int = 1,
        start_seconds: float = 0.3,
    ) -> None:
        self.machine = here.machine = Machine(seed)
        self.machine.on_end = self._ended
        where = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="simulated-", dir=where))
        os.environ["PYTHON_MP_RUNTIME_DIR"] = str(self.folder)
        Logger.errors = []
        self._product = product
        self._config = _config(tensor_parallel, pipeline)
        self.world_size = tensor_parallel * pipeline
        self.ranks = Ranks(product, start_seconds, self._computed)
        self.asked: list[Asked] = []
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
        self._numbers = 0
        self.stubs: dict[int, Stub] = {}
        self.passive = [self._load("shard", at) for at in range(REPLICAS * (self.world_size - 1))]
        for replica in range(REPLICAS):
            self.load(replica)
        self.wait(lambda: all(stub.model for stub in self.stubs.values()), 30, "a first load")
        self._quiet = self._held()

    # -- what happens ----------------------------------------------------------------------------

    def load(self, replica: int) -> None:
        self.trouble[replica] = self.machine.now
        self.stubs[replica] = self._load("lead", replica)

    def _load(self, group: str, index: int) -> Stub:
        stub = Stub(self._product.entry, f"{group}_{index}")
        config, repository = json.dumps(self._config), self.folder / "simulated"
        stub.initialize(arguments(config, repository, f"{group}_{index}"))
        return stub

    def new(self, kind: str, width: int, lengths: Sequence[int], rank: int) -> tuple[int, Outputs]:
        self._numbers += 1
        return self._numbers, content(self._numbers, kind, width, lengths, rank % self.world_size)

    def call(self, replica: int, contents: Sequence[tuple[int, str, Outputs, int]]) -> Call:
        """One `execute` with these (number, kind, inputs, time-out in microseconds)."""
        stub = self.stubs[replica]
        new = [
            Asked(
                *(number, kind, stub, replica),
                *(InferenceRequest(inputs, microseconds), self.machine.now),
            )
            for number, kind, inputs, microseconds in contents
        ]
        self.asked += new
        return stub.execute([asked.request for asked in new])

    def pass_time(self, seconds: float) -> None:
        self.machine.run(lambda: False, seconds)

    def wait(self, done: Any, seconds: float, what: str) -> None:
        if not self.machine.run(done, seconds):
            open_ = [asked for asked in self.asked if asked.open]
            self._fail(f"{what} took more than {seconds} s; open: {open_}")

    def living(self, replica: int) -> list[Process]:
        """A replica's ranks, oldest first."""
        name = f"rank {replica}."
        return [p for p in self.machine.processes.values() if p.alive and p.name.startswith(name)]

    def attack(self, replica: int) -> None:
        self.attacks.append(self.machine.now)
        self.trouble[replica] = self.machine.now

    def die(self, replica: int) -> None:
        """Its stub ends, as by SIGKILL: Triton fails what it had, and never starts it again."""
        if self.complete:  # Else another one would wait for it, until its load fails.
            stub = self.stubs.pop(replica)
            stub.process.end()
            self._lose(stub)
            self._leave()

    def stop_rank(self, replica: int, rank: Process) -> None:
        self.attack(replica)
        rank.stopped = True

    @property
    def complete(self) -> bool:
        return len(self.stubs) == REPLICAS and all(stub.model for stub in self.stubs.values())

    def stop(self, replica: int) -> None:
        stub = self.stubs.pop(replica)
        self._leave()
        call = stub.finalize()
        self.refuses.add(replica)
        self.wait(lambda: call.done, 30, "finalize")
        if call.error:
            self._fail(f"finalize raised {call.error!r}")
        self.check()
        for asked in self.asked:
            if asked.stub is stub and asked.open:
                self._fail(f"request {asked} was left behind by a stop")
        self.pass_time(1.0)
        self._end(stub)

    def _leave(self) -> None:
        """What was known there alone is forgotten."""
        if not self.stubs or self.machine.now - self.deaf < HEARD_SECONDS:
            self.poison.clear()

    def freeze(self, replica: int, stopped: bool) -> None:
        if stub := self.stubs.get(replica):
            self.trouble[replica] = self._deaf = self.machine.now
            stub.process.stopped = stopped

    @property
    def deaf(self) -> float:
        processes = [stub.process for stub in self.stubs.values()]
        if any(process.stopped for process in processes):
            self._deaf = self.machine.now
        return max(self._deaf, *(process.lacked for process in processes), 0.0)

    def _end(self, stub: Stub) -> None:
        """Triton has no more use for it."""
        left = [thread.name for thread in stub.process.threads if thread.name != "triton"]
        children = [child.name for child in stub.process.children if child.alive]
        if left or children:
            self._fail(f"{stub.process.name} has ended and left {left} {children}")
        stub.process.end(0)

    def _fail_loads(self) -> None:
        for replica, stub in list(self.stubs.items()):
            if stub.loading.error:
                if self.trouble[replica] < stub.loading.began:
                    self._fail(f"replica {replica} could not be loaded: {stub.loading.error!r}")
                del self.stubs[replica]
                self._end(stub)

    def _lose(self, stub: Stub) -> None:
        for asked in self.asked:
            asked.lost |= asked.stub is stub and asked.open

    def calm(self) -> None:
        """Nothing goes wrong any more. Everything is answered then, and nothing is left."""
        self.machine.plans.clear()
        self.ranks.failing_starts.clear()
        for replica in self.stubs:
            self.freeze(replica, stopped=False)
        for process in self.machine.processes.values():
            process.stopped, process.missing_descriptors = False, 0
        self.wait(lambda: not any(a.open for a in self.asked), 90, "the answers, after all faults,")
        self.pass_time(1.0)
        self.wait(lambda: all(map(self._is_calm, self.stubs)), 90, "to be calm again")
        self.check()
        self.asked.clear()
        self.refuses.clear()
        self._compare_held()

    def _is_calm(self, replica: int) -> bool:
        """It serves, has nothing in hand, and nothing waits; or Triton knows that it does not."""
        stub = self.stubs[replica]
        if not stub.model:
            return stub.loading.error is not None
        front = stub.model._instance._replica
        waits = len(front._schedule) + len(front._schedule._lent)
        return bool(front._group and front._group.flights.idle and not waits)

    def close(self) -> None:
        self.machine.close()
        rmtree(self.folder)
        gc.collect(0)

    # -- what must hold --------------------------------------------------------------------------

    def check(self) -> None:
        """After each step."""
        self._fail_loads()
        for thread, error in self.machine.crashes:
            self._fail(f"thread {thread.process.name}/{thread.name} ended: {error!r}")
        for text in self._wrong + [text for text in Logger.errors if _is_bug(text)]:
            self._fail(text)
        for asked in self.asked:
            self._check_asked(asked)
        for replica, stub in self.stubs.items():
            if stub.model and not stub.process.stopped:
                self._check_replica(replica, stub)

    def _check_asked(self, asked: Asked) -> None:
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

    def _overdue(self, asked: Asked) -> bool:
        if asked.stub.process.stopped or asked.stub.calls:
            return False
        since = max(asked.arrived, *self.trouble.values())
        return self.machine.now - since > ANSWER_SECONDS

    def _judge(self, asked: Asked, answer: Arrived) -> str:
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

    def _may_be_unavailable(self, asked: Asked, text: str, at: float) -> bool:
        if "time-out" in text:
            return bool(asked.request.microseconds) and at >= asked.deadline
        return "queue is full" in text or asked.replica in self.refuses

    def _may_fail(self, asked: Asked) -> bool:
        if asked.kind in POISON:
            return bool(self._commits[asked.number])
        return sum(asked.arrived <= attack for attack in self.attacks) >= 2

    def _check_replica(self, replica: int, stub: Stub) -> None:
        front, now = stub.model._instance._replica, self.machine.now
        waiting = list(front._schedule._waiting)
        where = f"replica {replica}"
        # Bounds hold when a request comes; what was with the ranks may come back beyond them.
        held = sum(
            not (r.suspicion or r.continues or _number(r) in self._given)
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

    @property
    def _slots(self) -> int:
        return int(self._config["parameters"]["pipeline_parallel_size"]["string_value"]) + 1

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
        numbers = (firsts // _NUMBERS).tolist()
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

    def _fail(self, text: str) -> None:
        raise AssertionError(text)


def _is_bug(logged: str) -> bool:
    """An error that nobody expected, other than the one that is injected."""
    return "Traceback" in logged and os.strerror(EMFILE) not in logged


def _number(request: Any) -> int:
    return int(request.inputs["X"].flat[0]) // _NUMBERS
