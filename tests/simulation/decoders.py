"""Two replicas of a decoder on a simulated machine, their clients, and what must hold of both.
Newer versions of it take their place, and Triton unloads the older ones when they are idle.

The ranks' next ids depend on all that lies in a stream's blocks, so an answer can be compared with
the one that it has alone.
"""

import gc
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace
from typing import Any

import numpy as np

from python_mp.rank.engines.echo import EXIT, HANG, RAISE, REFUSE
from python_mp.rank.engines.echo_decoder import fault_id
from tests.support.configs import decoder_version, raw_decoder
from tests.support.streams import EOS, expected
from tests.support.triton_stub import FINAL, InferenceResponse, TritonError, arguments

from .machine import Machine, Process
from .modules import here
from .ranks import Ranks
from .triton import InferenceRequest, Logger, Outputs, ResponseSender, Stub

REPLICAS = 2
CONTEXT = 160
HANG_SECONDS, DRAIN_SECONDS = 5, 1
START_SECONDS = 30
"""A load ends, in vain if need be, so soon: it waits for stubs that have died meanwhile."""
QUIET_SECONDS = 20.0
"""Without a token, and nothing happens, beyond what all others take: somebody waits in vain."""
CALM_SECONDS = 90.0
"""Longer than any pause before a start, or a load."""
LATE_SECONDS = 1.5
"""A client's time-out, or its leave, holds so soon."""
KINDS = {"raises": RAISE, "exits": EXIT, "hangs": HANG, "refused": REFUSE}
OUTPUTS = ["OUTPUT_IDS", "FINISH_REASON", "USAGE"]
UNSENDABLE = "no shared memory is left"


@dataclass(eq=False)
class StreamRequest(InferenceRequest):
    settings: dict[str, Any] = field(default_factory=dict)
    parts: list[Outputs] = field(default_factory=list)
    last: float = 0.0
    """When the latest part came."""
    unsendable: bool = False
    """Its next part fails; nothing but an error may come then."""

    def parameters(self) -> str:
        return json.dumps(self.settings)

    def requested_output_names(self) -> list[str]:
        return OUTPUTS

    def get_response_sender(self) -> ResponseSender:
        return StreamSender(self)


class StreamSender(ResponseSender):
    _request: StreamRequest

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        here.machine.wobble()
        request = self._request
        if request.answers:
            request.faults.append("a response after the last one")
        if request.unsendable and flags != FINAL:
            if request.last < 0:
                request.faults.append("a part after one that was lost")
            request.last = -1.0
            raise RuntimeError(UNSENDABLE)
        if not response.error:
            request.parts.append(response.outputs)
            request.last = here.machine.now
        if flags == FINAL:
            request.arrive(response)


@dataclass(eq=False, repr=False)
class Asked:
    """One stream, and whom it was sent to."""

    prompt: list[int]
    most: int
    kind: str
    stub: Stub
    version: int
    request: StreamRequest
    arrived: float
    replica: int
    ends: int
    """Of ranks, before it came."""
    left: float = inf
    """When its client went."""
    lost: bool = False
    """Its stub has died."""
    judged: bool = False

    def __repr__(self) -> str:
        return f"stream of {self.prompt[:3]}..., {self.most} tokens ({self.kind})"

    @property
    def open(self) -> bool:
        return not self.request.answers and not self.lost

    def was_open(self, since: float) -> bool:
        """At that time or later."""
        answers = self.request.answers
        return answers[0].at > since if answers else not self.lost

    @property
    def ids(self) -> list[int]:
        return [t for part in self.request.parts for t in part["OUTPUT_IDS"][0].tolist()]

    @cached_property
    def wanted(self) -> list[int]:
        seed = self.request.settings.get("seed", 0)
        return expected(self.prompt, self.most, seed=seed, eos=eos_of(self.version))

    @property
    def deadline(self) -> float:
        micro = self.request.microseconds
        return self.arrived + micro / 1e6 if micro else inf


def eos_of(version: int) -> int:
    """Each third version is another model."""
    return EOS + version // 3


class Decoders:
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
        self.machine = here.machine = Machine(seed)
        self.machine.on_end = self._ended
        self.folder = Path(tempfile.mkdtemp(prefix="simulated-"))
        os.environ["PYTHON_MP_RUNTIME_DIR"] = str(self.folder)
        Logger.errors = []
        self._product = product
        tensor_parallel, pipeline = sizes
        self.world_size = tensor_parallel * pipeline
        # A prompt of 53 tokens takes four steps of 17.
        self._step_seconds = (step_milliseconds + 10) / 1e3 * pipeline
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
        self.ranks = Ranks(product, start_seconds, lambda rank, inputs: None)
        self.asked: list[Asked] = []
        self.trouble = 0.0
        """When last something happened that may delay answers."""
        self.ends = 0
        """Ranks that have ended."""
        self.refuses: set[int] = set()
        """Replicas that may say that their ranks do not start."""
        self.version = 0
        self.stubs: dict[tuple[int, int], Stub] = {}
        self.load()
        self.wait(lambda: self.complete, 30, "a first load")

    # -- what happens ----------------------------------------------------------------------------

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
    ) -> Asked | None:
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
        what = ids, most, kind, stub, version, request, self.machine.now, replica, self.ends
        asked = Asked(*what)
        self.asked.append(asked)
        call = stub.execute([request])
        if not stub.process.stopped:
            self.machine.run(lambda: call.done or not stub.process.alive, 3.0)
        return asked

    def stir(self) -> None:
        self.trouble = self.machine.now

    def cancel(self, asked: Asked) -> None:
        asked.request.cancelled = True
        asked.left = min(asked.left, self.machine.now)

    def living(self, replica: int) -> list[Process]:
        """A replica's ranks, oldest first."""
        name = f"rank {replica}."
        return [p for p in self.machine.processes.values() if p.alive and p.name.startswith(name)]

    def freeze(self, stub: Stub, *, stopped: bool) -> None:
        self.stir()
        stub.process.stopped = stopped

    def die(self, key: tuple[int, int]) -> None:
        """Its stub ends, as by SIGKILL: Triton fails what it had."""
        self.stir()
        stub = self.stubs.pop(key)
        for asked in self.asked:
            asked.lost |= asked.stub is stub and asked.open
        stub.process.end()

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
        call = stub.finalize()
        self.wait(lambda: call.done, 30, "finalize")
        if call.error:
            self._fail(f"finalize raised {call.error!r}")
        self.check()
        if left := [asked for asked in self.asked if asked.stub is stub and asked.open]:
            self._fail(f"{left[0]} was left behind by a stop")
        self.pass_time(1.0)
        threads = [thread.name for thread in stub.process.threads if thread.name != "triton"]
        if threads or any(child.alive for child in stub.process.children):
            self._fail(f"{stub.process.name} has ended and left {threads}")
        stub.process.end(0)

    def pass_time(self, seconds: float) -> None:
        self.machine.run(lambda: False, seconds)

    def wait(self, done: Any, seconds: float, what: str) -> None:
        if not self.machine.run(done, seconds):
            open_ = [asked for asked in self.asked if asked.open]
            self._fail(f"{what} took more than {seconds} s; open: {open_}")

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

    def close(self) -> None:
        self.machine.close()
        rmtree(self.folder)
        gc.collect(0)

    # -- what must hold --------------------------------------------------------------------------

    def check(self) -> None:
        """After each step."""
        for thread, error in self.machine.crashes:
            self._fail(f"thread {thread.process.name}/{thread.name} ended: {error!r}")
        for text in Logger.errors:
            if "Traceback" in text and UNSENDABLE not in text:
                self._fail(text)
        for key, stub in list(self.stubs.items()):
            if stub.loading.error:
                self._drop(key, stub)
        for asked in self.asked:
            if not asked.judged and (fault := self._fault(asked)):
                self._fail(f"{asked}: {fault}")

    def _drop(self, key: tuple[int, int], stub: Stub) -> None:
        """Its load has failed."""
        if self.trouble < stub.loading.began:
            self._fail(f"{stub.process.name} could not be loaded: {stub.loading.error!r}")
        del self.stubs[key]
        stub.process.end(0)

    def _fault(self, asked: Asked) -> str:
        request, ids = asked.request, asked.ids
        if request.faults:
            return request.faults[0]
        if ids != asked.wanted[: len(ids)]:
            return f"got {ids}, not {asked.wanted}"
        if asked.open and not asked.stub.process.stopped and not asked.stub.calls:
            return self._overdue(asked)
        if not request.answers:
            return ""
        asked.judged = True
        if request.answers[0].error:
            return self._judge(asked, request.answers[0].error)
        reason = request.parts[-1]["FINISH_REASON"][0, 0].decode()
        right = "stop" if asked.wanted[-1] == eos_of(asked.version) else "length"
        whole = ids == asked.wanted and reason == right and asked.kind == "good"
        return "" if whole else f"it ended with {len(ids)} of {len(asked.wanted)} tokens, {reason}"

    def _overdue(self, asked: Asked) -> str:
        now = self.machine.now
        due = min(asked.deadline, asked.left)
        if now - max(due, self.trouble) > LATE_SECONDS:
            return f"it goes on {now - due:.1f} s after its time-out, or its client's leave"
        since = max(asked.arrived, asked.request.last, self.trouble)
        quiet = now - since
        if quiet > QUIET_SECONDS and quiet > QUIET_SECONDS + self._work(since):
            return f"no token for {quiet:.1f} s"
        return ""

    def _work(self, since: float) -> float:
        """Seconds that all takes, one after the other, for which that one may have waited."""
        steps = sum(6 + each.most for each in self.asked if each.was_open(since))
        return self._step_seconds * steps

    def _judge(self, asked: Asked, error: TritonError) -> str:
        allowed = {
            TritonError.INVALID_ARG: asked.kind == "refused",
            TritonError.CANCELLED: asked.request.cancelled,
            TritonError.UNAVAILABLE: self._may_be_unavailable(asked, str(error)),
            # Nobody can tell a stream from the killer that always comes when it is alone.
            TritonError.INTERNAL: asked.kind in KINDS
            or asked.request.unsendable
            or self.ends >= asked.ends + 2,
        }
        return "" if allowed[error.code] else f"{error.code} {error}"

    def _may_be_unavailable(self, asked: Asked, text: str) -> bool:
        if "time-out" in text:
            return self.machine.now >= asked.deadline
        if "another model" in text:
            return eos_of(self.version) != eos_of(asked.version)
        if "newer version" in text:  # It was a suspect then, or nobody was there to take it.
            is_another = eos_of(self.version) != eos_of(asked.version)
            return asked.version < self.version and (is_another or self.trouble >= asked.arrived)
        if "unloaded" in text or "was stopped" in text:
            return asked.stub not in self.stubs.values()
        return "queue is full" in text or asked.replica in self.refuses

    def _ended(self, process: Process) -> None:
        if process.name.startswith("rank "):
            self.ends += 1
            self.trouble = self.machine.now

    def _fail(self, text: str) -> None:
        raise AssertionError(text)


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
