"""What became of each request. One that is never ended here is one that hangs."""

import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

SLOW_SECONDS = 0.1


class Outcome(StrEnum):
    RIGHT = "right"
    REFUSED = "refused"
    """It cannot be served now: nobody listens, or the queue is full, or its process just died."""
    FAILED = "failed"
    WRONG = "wrong"
    """Other values, another order, another request's answer, or a second answer."""
    HUNG = "hung"
    CANCELLED = "cancelled"
    """By its own client."""


@dataclass(frozen=True, slots=True)
class Record:
    """A request that was not answered right, or slowly; times of `time.monotonic`, in seconds."""

    number: int
    model: str
    via: str
    sent: float
    ended: float
    outcome: Outcome
    detail: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.sent


class Journal:
    """Written by all clients' threads.

    Args:
        deadline: seconds after which an answer no longer counts, whatever it says.
    """

    def __init__(self, deadline: float = 60.0) -> None:
        self.deadline = deadline
        self.records: list[Record] = []
        self.counts: Counter[Outcome] = Counter()
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[str, str, float]] = {}
        self._lock = threading.Lock()

    def sent(self, model: str, via: str) -> int:
        """The number of a request that is about to be sent."""
        with self._lock:
            number = next(self._numbers)
            self._open[number] = model, via, time.monotonic()
        return number

    def ended(self, number: int, outcome: Outcome, detail: str = "") -> None:
        """To be called exactly once for a request; a second time is a finding."""
        now = time.monotonic()
        with self._lock:
            model, via, sent = self._open.pop(number, ("", "", now))
            if not model:
                outcome, detail = Outcome.WRONG, f"answered twice, then {outcome}"
            elif now - sent > self.deadline:
                outcome, detail = Outcome.HUNG, f"{outcome} only after the deadline; {detail}"
            self._book(Record(number, model, via, sent, now, outcome, detail))

    def close(self) -> None:
        """Nobody waits any longer: what is still open has been lost."""
        now = time.monotonic()
        with self._lock:
            for number, (model, via, sent) in self._open.items():
                self._book(Record(number, model, via, sent, now, Outcome.HUNG, "never answered"))
            self._open.clear()

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def _book(self, record: Record) -> None:
        self.counts[record.outcome] += 1
        if record.outcome is not Outcome.RIGHT or record.seconds > SLOW_SECONDS:
            self.records.append(record)
