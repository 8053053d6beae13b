"""What waits, and which of it goes next."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable

from ...model.config import Parameters
from ...model.errors import InvalidInput, Unavailable
from ...model.request import Request
from ...model.size import Size


class Scheduler:
    """First come, first served. A batch is cut only when the ranks can take it, so it is as large
    as the load makes it: no delay is ever added to wait for company."""

    def __init__(self, bounds: Parameters) -> None:
        self._bounds = bounds
        self._waiting: deque[Request] = deque()
        self._lent: set[Request] = set()
        self.nbytes = 0
        """Of all that waits."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def next_is_suspect(self) -> bool:
        """The next request was in hand when a group died."""
        head = self.head
        return head is not None and head.suspicion > 0

    @property
    def head(self) -> Request | None:
        """What comes next. The rest of a request of which one part has failed is dropped here."""
        while self._waiting and self._waiting[0].answered:
            self._take()
        return self._waiting[0] if self._waiting else None

    def add(self, request: Request) -> None:
        """Queues the request behind all that came before it.

        Raises:
            InvalidInput: no batch can hold it.
            Unavailable: the queue is full; better refused now than late.
        """
        bounds = self._bounds
        if not request.size.fits(bounds):
            raise InvalidInput(f"the request {request.size.excess(bounds)}")
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
        most = self._bounds.max_queue_requests - len(self._lent)
        if len(self._waiting) < most:  # Mostly, so that nobody counts.
            return False
        return sum(not each.continues for each in self._waiting) >= most

    def put_back(self, requests: Iterable[Request]) -> None:
        """To their old places in the queue, unless they have their answers: who came first goes
        first."""
        for request in reversed(list(requests)):
            self._lent.discard(request)
            if not request.answered:
                place = bisect_left(self._waiting, request.arrived, key=_arrived)
                self._waiting.insert(place, request)
                self.nbytes += request.nbytes

    def lend(self, may_go: Callable[[Request], bool]) -> Request | None:
        """Takes the first one that may be computed elsewhere. Until it is put back or settled it
        counts as if it waited, so that there is room for it if it comes back."""
        request = next((r for r in self._waiting if not r.answered and may_go(r)), None)
        if request is not None:
            self.remove(request)
            self._lent.add(request)
        return request

    def settle(self, request: Request) -> None:
        """What was lent has its answer."""
        self._lent.discard(request)

    def take_all(self) -> list[Request]:
        taken = list(self._waiting)
        self._waiting.clear()
        self.nbytes = 0
        return taken

    def waiting_since(self, moment: float) -> list[Request]:
        """What arrived before that `perf_counter`, oldest first."""
        return [request for request in self._waiting if request.arrived <= moment]

    def drop_answered(self) -> None:
        """Parts of requests of which another part has failed."""
        for request in [each for each in self._waiting if each.answered]:
            self.remove(request)

    def remove(self, request: Request) -> bool:
        """Whether it was still waiting."""
        try:
            self._waiting.remove(request)
        except ValueError:
            return False
        self.nbytes -= request.nbytes
        return True

    def next_batch(self) -> list[Request]:
        """The head of the queue and all behind it that may share its batch, within the bounds;
        nothing if nobody waits."""
        batch: list[Request] = []
        size, company = Size(0, 0, 0), math.inf
        while head := self.head:
            size, company = size.plus(head.size), min(company, 1 if head.alone else head.company)
            if batch and not (
                len(batch) < company
                and head.signature == batch[0].signature
                and size.fits(self._bounds)
            ):
                break
            batch.append(self._take())
        return batch

    def _take(self) -> Request:
        request = self._waiting.popleft()
        self.nbytes -= request.nbytes
        return request


def _arrived(request: Request) -> float:
    return request.arrived
