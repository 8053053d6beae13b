"""What waits, in the order in which it came."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from ...model.config import Parameters
from ...model.errors import Unavailable
from ...model.request import Request

R = TypeVar("R", bound=Request)


class Waiting(Generic[R]):
    """The queue of a replica, within its bounds: first come, first served."""

    def __init__(self, bounds: Parameters) -> None:
        self.bounds = bounds
        self._waiting: deque[R] = deque()
        self._lent: set[R] = set()
        self.nbytes = 0
        """Of all that waits."""

    def __iter__(self) -> Iterator[R]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def head(self) -> R | None:
        """What comes next. The rest of a request of which one part has failed is dropped here."""
        while self._waiting and self._waiting[0].answered:
            self.take()
        return self._waiting[0] if self._waiting else None

    def add(self, request: R) -> None:
        """Queues the request behind all that came before it.

        Raises:
            Unavailable: the queue is full; better refused now than late.
        """
        bounds = self.bounds
        if not request.continues and self._is_full:
            raise Unavailable(
                f"the queue is full ({bounds.max_queue_requests} requests); try again"
            )
        held = self.nbytes + sum(lent.nbytes for lent in self._lent)
        if held and held + request.nbytes > bounds.max_queue_bytes:
            raise Unavailable(f"the queue is full ({held} bytes); try again")
        place = len(self._waiting)
        if self._waiting and request.arrived < self._waiting[-1].arrived:
            # Two threads, a peer's and Triton's, may come here in another order than they read.
            place = bisect_right(self._waiting, request.arrived, key=_arrived)
        self._waiting.insert(place, request)
        self.nbytes += request.nbytes

    @property
    def _is_full(self) -> bool:
        """Of requests; the parts of one take one place."""
        most = self.bounds.max_queue_requests - len(self._lent)
        if len(self._waiting) < most:  # Mostly, so that nobody counts.
            return False
        return sum(not each.continues for each in self._waiting) >= most

    def put_back(self, requests: Iterable[R]) -> None:
        """To their old places in the queue, unless they have their answers: who came first goes
        first."""
        for request in reversed(list(requests)):
            self._lent.discard(request)
            if not request.answered:
                place = bisect_left(self._waiting, request.arrived, key=_arrived)
                self._waiting.insert(place, request)
                self.nbytes += request.nbytes

    def lend(self, may_go: Callable[[R], bool]) -> R | None:
        """Takes the first one that may be computed elsewhere. Until it is put back or settled it
        counts as if it waited, so that there is room for it if it comes back."""
        request = next((r for r in self._waiting if not r.answered and may_go(r)), None)
        if request is not None:
            self.remove(request)
            self._lent.add(request)
        return request

    def settle(self, request: R) -> None:
        """What was lent has its answer."""
        self._lent.discard(request)

    def take_out(self, which: Callable[[R], bool]) -> list[R]:
        """All such, oldest first."""
        taken = [each for each in self._waiting if which(each)]
        if taken:
            gone = set(taken)
            self._waiting = deque(each for each in self._waiting if each not in gone)
            self.nbytes -= sum(each.nbytes for each in taken)
        return taken

    def waiting_since(self, moment: float) -> list[R]:
        """What arrived before that `perf_counter`, oldest first."""
        return [request for request in self._waiting if request.arrived <= moment]

    def drop_answered(self) -> None:
        """Parts of requests of which another part has failed."""
        self.take_out(lambda each: each.answered)

    def remove(self, request: R) -> bool:
        """Whether it was still waiting."""
        try:
            self._waiting.remove(request)
        except ValueError:
            return False
        self.nbytes -= request.nbytes
        return True

    def take(self) -> R:
        """The head."""
        request = self._waiting.popleft()
        self.nbytes -= request.nbytes
        return request


def _arrived(request: Request) -> float:
    return request.arrived
