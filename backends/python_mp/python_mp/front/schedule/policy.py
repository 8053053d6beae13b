"""What a replica asks of its schedule: which requests go next, and what comes back of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ...model.batch import Batch
from ...model.request import Array, Request
from ..flights import Flight, Flights
from ..inbox import GroupEnded


class Schedule(Protocol):
    """`OneShot` answers a request by one batch; `Continuous` generates, a step a token. Only
    `prepare`, `answer` and `guest` are called without the replica's lock.

    Attributes:
        nbytes: of the inputs that wait.
    """

    nbytes: int

    def start(self) -> None:
        """Before the ranks are."""

    @property
    def has_open(self) -> bool:
        """Whether somebody may cancel, or wait too long."""

    @property
    def is_quick(self) -> bool:
        """Batches take the ranks so little time that a thread may wait for one."""

    def __len__(self) -> int:
        """Requests that wait for the ranks."""

    def prepare(self, request: Request) -> list[Request]:
        """What is queued for it. Raises InvalidInput."""

    def add(self, request: Request) -> None:
        """Raises InvalidInput, or Unavailable where the queue is full."""

    def group_serves(self, blocks: int) -> None:
        """New ranks, whose KV cache is empty and has so many blocks."""

    def next_batch(self, flights: Flights) -> Batch | None:
        """For ranks that have room; None where nothing can go now."""

    def lost(self, batch: Batch) -> None:
        """It could not be given to the ranks."""

    def book(self, flight: Flight) -> None:
        """The ranks are through with it. What the next batch needs to know is noted here."""

    def answer(self, flight: Flight) -> None:
        """Its clients get what it has for them."""

    def in_hand(self, flights: Flights) -> list[Request]:
        """What a group that ends now leaves unanswered."""

    def guilty(self, flights: Flights, ended: GroupEnded) -> list[Request]:
        """Those that have ended it, and are not to be replayed."""

    def put_back(self, requests: list[Request]) -> None:
        """To their old places in the queue, unless they have their answers."""

    def lend(self, may_go: Callable[[Request], bool]) -> Request | None:
        """The first one that may be computed elsewhere. It counts here until it is
        put back or settled."""

    def settle(self, request: Request) -> None:
        """It has its answer."""

    def guest(self, inputs: Mapping[str, Array], said: Mapping[str, Any], answer: Any) -> Request:
        """What a peer has, by `Request.described`. Raises InvalidInput."""

    def hear(self, request: Request, text: str) -> None:
        """A part of the answer to what was lent."""

    def take_out(self, which: Callable[[Request], bool]) -> list[Request]:
        """All such that wait, oldest first."""

    def waiting_since(self, moment: float) -> list[Request]:
        """What is open and came before that `perf_counter`, oldest first."""

    def drop_answered(self) -> None:
        """Parts of requests of which another part has failed."""

    def remove(self, request: Request) -> bool:
        """Whether it was there, and had no answer yet."""

    def stop(self) -> None:
        """Nothing is added any more."""
