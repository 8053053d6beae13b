"""Batches on their way through the ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..model.batch import Batch
from ..model.request import Outputs, Request
from ..wire.message import Refusal


class Step(NamedTuple):
    """What a rank says of its part in a batch; seconds."""

    rank: int
    compute: float
    waited: float
    """Of these, for its peers."""
    padded: int
    """Places of its rectangles that no row was in."""
    host: str = ""
    """Where it is, if not on this host."""


@dataclass
class Flight:
    """A batch on its way through the ranks. Its slot is free when every rank is through with it and
    the front has let go of the outputs."""

    batch: Batch
    slot: int
    dispatched: float
    waiting_for: set[int]
    outputs: Outputs | None = None
    refusal: Refusal | None = None
    refused_by: set[int] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    held: bool = True

    @property
    def landed(self) -> bool:
        return not self.waiting_for


class Flights:
    """Those of one group; each has a slot of the arena.

    Args:
        slots: how many there are.
        first_stage: ranks that a batch reaches first.
        depth: batches that these may have at a time.
    """

    def __init__(self, slots: int, first_stage: set[int], depth: int = 1) -> None:
        self._slots, self._depth = slots, depth
        self._first_stage = first_stage
        self._flights: list[Flight] = []

    @property
    def idle(self) -> bool:
        return not self._flights

    @property
    def oldest(self) -> Flight | None:
        return self._flights[0] if self._flights else None

    @property
    def has_room(self) -> bool:
        """The first stage has too little to do and a slot is free: the moment to cut a batch."""
        there = sum(bool(flight.waiting_for & self._first_stage) for flight in self._flights)
        return there < self._depth and len(self._flights) < self._slots

    @property
    def holds_suspect(self) -> bool:
        return any(r.suspicion > 0 for flight in self._flights for r in flight.batch.requests)

    @property
    def in_hand(self) -> list[Request]:
        """Requests not answered yet, oldest first."""
        requests = (request for flight in self._flights for request in flight.batch.requests)
        return [request for request in requests if not request.answered]

    @property
    def free_slot(self) -> int:
        """Call only if there is room."""
        return min(set(range(self._slots)) - {flight.slot for flight in self._flights})

    def add(self, flight: Flight) -> None:
        self._flights.append(flight)

    def of_batch(self, number: int) -> Flight:
        return next(flight for flight in self._flights if flight.batch.id == number)

    def take_landed(self) -> list[Flight]:
        """Takes out those that nobody needs any more; their slots are free."""
        gone = [flight for flight in self._flights if flight.landed and not flight.held]
        self._flights = [flight for flight in self._flights if flight not in gone]
        return gone
