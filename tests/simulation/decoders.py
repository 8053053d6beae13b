"""Two replicas of a decoder on a simulated machine, their clients, and what happens to them. Newer
versions of it take their place, and Triton unloads the older ones when they are idle.

The ranks' next ids depend on all that lies in a stream's blocks, so an answer can be compared with
the one that it has alone.
"""

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from python_mp.rank.engines.echo_decoder import fault_id
from tests.support.configs import decoder_version, raw_decoder
from tests.support.triton_stub import arguments

from .simulated import REPLICAS
from .stream_invariants import KINDS, StreamInvariants
from .stream_requests import Stream, StreamRequest, eos_of
from .triton import Stub

CONTEXT = 160
HANG_SECONDS, DRAIN_SECONDS = 5, 1
START_SECONDS = 30
"""A load ends, in vain if need be, so soon: it waits for stubs that have died meanwhile."""
CALM_SECONDS = 90.0
"""Longer than any pause before a start, or a load."""


class Decoders(StreamInvariants):
    def __init__(
        self,
        product: SimpleNamespace,
        seed: int,
        sizes: tuple[int, int] = (1, 1),
        start_seconds: float = 0.3,
        blocks: int = 40,
        budget: int = 64,
        step_milliseconds: int = 20,
    ) -> None:
        tensor_parallel, pipeline = sizes
        # A prompt of 53 tokens takes four steps of 17.
        super().__init__(product, seed, start_seconds, (step_milliseconds + 10) / 1e3 * pipeline)
        self.world_size = tensor_parallel * pipeline
        self._config = raw_decoder(
            "decoder",
            replicas=REPLICAS,
            tensor_parallel_size=tensor_parallel,
            pipeline_parallel_size=pipeline,
            max_batch_tokens=budget,
            kv_cache_blocks=blocks,
            start_timeout_seconds=START_SECONDS,
            hang_seconds=HANG_SECONDS,
            drain_seconds=DRAIN_SECONDS,
            **{"module.step_milliseconds": step_milliseconds},
        )
        self.load()
        self.wait(lambda: self.complete, 30, "a first load")

    def load(self) -> None:
        """The next version, on both replicas; the passive ones are not simulated."""
        self.version += 1
        decoder_version(
            self.folder / "decoder" / f"{self.version}", CONTEXT, 1 << 20, eos_of(self.version)
        )
        for at in range(REPLICAS * (self.world_size - 1)):
            self._load("shard", at)
        for replica in range(REPLICAS):
            self.load_replica(replica)

    def load_replica(self, replica: int) -> None:
        self.stir()
        self.stubs[self.version, replica] = self._load("lead", replica)

    def _load(self, group: str, index: int) -> Stub:
        stub = Stub(self._product.entry, f"{group}_{index} of {self.version}")
        said = arguments(json.dumps(self._config), self.folder / "decoder", f"{group}_{index}")
        stub.initialize(said | {"model_version": str(self.version)})
        return stub

    def ask(
        self, replica: int, prompt: Sequence[int], most: int, kind: str = "good", **how: Any
    ) -> Stream | None:
        """Triton gives it to the newest version, whichever replicas of that there are."""
        loaded = [key for key, stub in self.stubs.items() if stub.model]
        if not loaded:
            return None
        version = max(loaded)[0]
        if (version, replica) not in loaded:
            replica = 1 - replica
        stub = self.stubs[version, replica]
        ids = [*prompt, *([fault_id(KINDS[kind])] if kind in KINDS else [])]
        microseconds = how.pop("microseconds", 0)
        settings = {"max_tokens": most, **how}
        inputs = {"INPUT_IDS": np.array([ids], np.int32)}
        request = StreamRequest(inputs, microseconds, settings=settings)
        asked = Stream(
            prompt=ids,
            most=most,
            kind=kind,
            stub=stub,
            version=version,
            request=request,
            arrived=self.machine.now,
            replica=replica,
            ends=self.ends,
        )
        self.asked.append(asked)
        call = stub.execute([request])
        if not stub.process.stopped:
            self.machine.run(lambda: call.done or not stub.process.alive, 3.0)
        return asked

    def stir(self) -> None:
        self.trouble = self.machine.now

    def cancel(self, asked: Stream) -> None:
        asked.request.cancelled = True
        asked.left = min(asked.left, self.machine.now)

    def freeze(self, stub: Stub, *, stopped: bool) -> None:
        self.stir()
        stub.process.stopped = stopped

    def die(self, key: tuple[int, int]) -> None:
        self.stir()
        self._lose(self.stubs.pop(key))

    def unload_idle(self) -> None:
        """As Triton does with older versions in which nothing is in flight."""
        newest = all(
            (self.version, r) in self.stubs and self.stubs[self.version, r].model
            for r in range(REPLICAS)
        )
        for key, stub in list(self.stubs.items()):
            busy = stub.calls or any(a.stub is stub and a.open for a in self.asked)
            if (
                newest
                and key[0] < self.version
                and stub.model
                and not busy
                and not stub.process.stopped
            ):
                self.stop(key)

    def stop(self, key: tuple[int, int]) -> None:
        stub = self.stubs.pop(key)
        self.stir()
        self._finalize(stub)

    def calm(self) -> None:
        """Nothing goes wrong any more: everything is answered then, and all blocks are free."""
        self.machine.plans.clear()
        self.ranks.failing_starts.clear()
        for process in self.machine.processes.values():
            process.stopped = False
        self.stir()
        self._settle(lambda: not any(a.open for a in self.asked), "the answers, after all faults,")
        self._settle(lambda: all(map(_is_calm, self.stubs.values())), "to be calm again")
        self.check()
        self.asked.clear()
        self.refuses.clear()
        self.unload_idle()

    def _settle(self, done: Callable[[], bool], what: str) -> None:
        """It may take as long as something happens: what hangs ends group after group."""
        while not self.machine.run(done, 1.0):
            self.check()
            last = max((a.request.last for a in self.asked), default=0.0)
            if self.machine.now - max(self.trouble, last) > CALM_SECONDS:
                self._fail(f"{what} took more than {CALM_SECONDS} s")

    @property
    def complete(self) -> bool:
        return len(self.stubs) >= REPLICAS and all(stub.model for stub in self.stubs.values())


def _is_calm(stub: Stub) -> bool:
    """It serves, nothing waits or is in hand, and every block is free; or it was not loaded."""
    if not stub.model:
        return stub.loading.error is not None
    front = stub.model._instance._replica
    schedule = front._schedule
    pool = schedule._running.pool
    left = len(schedule) + len(schedule._lent) + len(schedule._running.streams)
    served = (front._group and front._group.flights.idle) or front._status.leaves
    return bool(served and not left and pool.free == pool.blocks)
