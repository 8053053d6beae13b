"""What must hold of a decoder's streams, whatever happens to its replicas."""

from types import SimpleNamespace

from python_mp.rank.engines.echo import EXIT, HANG, RAISE, REFUSE
from tests.support.triton_stub import TritonError

from .machine import Process
from .simulated import Simulation
from .stream_requests import UNSENDABLE, Stream, eos_of
from .triton import Logger, Stub

QUIET_SECONDS = 20.0
"""Without a token, and nothing happens, beyond what all others take: somebody waits in vain."""
LATE_SECONDS = 1.5
"""A client's time-out, or its leave, holds so soon."""
KINDS = {"raises": RAISE, "exits": EXIT, "hangs": HANG, "refused": REFUSE}


class StreamInvariants(Simulation[Stream]):
    """
    Args:
        step_seconds: what a step of all stages takes, at most.
    """

    def __init__(
        self, product: SimpleNamespace, seed: int, start_seconds: float, step_seconds: float
    ) -> None:
        super().__init__(product, seed, start_seconds, lambda rank, inputs: None)
        self._step_seconds = step_seconds
        self.trouble = 0.0
        """When last something happened that may delay answers."""
        self.ends = 0
        """Ranks that have ended."""
        self.refuses: set[int] = set()
        """Replicas that may say that their ranks do not start."""
        self.version = 0
        self.stubs: dict[tuple[int, int], Stub] = {}

    def check(self) -> None:
        self._check_threads()
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

    def _fault(self, asked: Stream) -> str:
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

    def _overdue(self, asked: Stream) -> str:
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

    def _judge(self, asked: Stream, error: TritonError) -> str:
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

    def _may_be_unavailable(self, asked: Stream, text: str) -> bool:
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
