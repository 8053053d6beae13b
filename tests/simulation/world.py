"""Two replicas of one model on a simulated machine, their clients, and what happens to them."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from tests.support.configs import INT32, raw_config, tensor
from tests.support.triton_stub import arguments

from .front_invariants import HEARD_SECONDS, MOST_WAITING, FrontInvariants
from .machine import Process
from .numbered import MOST_TOKENS, Numbered, content
from .simulated import REPLICAS
from .triton import Call, InferenceRequest, Outputs, Stub

HANG_SECONDS = 5


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


class World(FrontInvariants):
    def __init__(
        self,
        product: SimpleNamespace,
        seed: int,
        tensor_parallel: int = 1,
        pipeline: int = 1,
        start_seconds: float = 0.3,
    ) -> None:
        super().__init__(product, seed, start_seconds, slots=pipeline + 1)
        self._config = _config(tensor_parallel, pipeline)
        self.world_size = tensor_parallel * pipeline
        self._numbers = 0
        self.passive = [self._load("shard", at) for at in range(REPLICAS * (self.world_size - 1))]
        for replica in range(REPLICAS):
            self.load(replica)
        self.wait(lambda: all(stub.model for stub in self.stubs.values()), 30, "a first load")
        self._quiet = self._held()

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
            Numbered(
                number=number,
                kind=kind,
                stub=stub,
                replica=replica,
                request=InferenceRequest(inputs, microseconds),
                arrived=self.machine.now,
            )
            for number, kind, inputs, microseconds in contents
        ]
        self.asked += new
        return stub.execute([asked.request for asked in new])

    def attack(self, replica: int) -> None:
        self.attacks.append(self.machine.now)
        self.trouble[replica] = self.machine.now

    def die(self, replica: int) -> None:
        """Triton never starts it again."""
        if self.complete:  # Else another one would wait for it, until its load fails.
            self._lose(self.stubs.pop(replica))
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
        self.refuses.add(replica)
        self._finalize(stub)

    def _leave(self) -> None:
        """What was known there alone is forgotten."""
        if not self.stubs or self.machine.now - self.deaf < HEARD_SECONDS:
            self.poison.clear()

    def freeze(self, replica: int, stopped: bool) -> None:
        if stub := self.stubs.get(replica):
            self.trouble[replica] = self._deaf = self.machine.now
            stub.process.stopped = stopped

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
