"""What waits, and which of it goes next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..batch import Request
from ..errors import InvalidInput, Unavailable


class Scheduler:
    """First come, first served. A batch is cut only when the ranks can take it, so it is as large
    as the load makes it: no delay is ever added to wait for company."""

    def __init__(self, max_batch_tokens: int, max_batch_bytes: int, max_requests: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_bytes = max_batch_bytes
        self._max_requests = max_requests
        self._waiting: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def next_is_suspect(self) -> bool:
        """The next request was in hand when a group died."""
        return bool(self._waiting) and self._waiting[0].suspicion > 0

    def add(self, request: Request) -> None:
        """Queues the request at the end.

        Raises:
            InvalidInput: no batch can hold it.
            Unavailable: the queue is full; better refused now than late.
        """
        if request.nbytes > self._max_batch_bytes:
            raise InvalidInput(
                f"the request has {request.nbytes} bytes; max_batch_bytes is "
                f"{self._max_batch_bytes}"
            )
        if len(self._waiting) >= self._max_requests:
            raise Unavailable(f"the queue is full ({self._max_requests} requests); try again")
        self._waiting.append(request)

    def put_back(self, requests: Iterable[Request]) -> None:
        """To the head of the queue, in their old order: they have waited longest."""
        self._waiting.extendleft(reversed(list(requests)))

    def take_all(self) -> list[Request]:
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def next_batch(self) -> list[Request]:
        """The head of the queue and all behind it that may share its batch, within the bounds."""
        batch = [self._waiting.popleft()]
        tokens, size = batch[0].tokens, batch[0].nbytes
        while self._waiting and not batch[0].alone:
            head = self._waiting[0]
            tokens, size = tokens + head.tokens, size + head.nbytes
            if (
                tokens > self._max_batch_tokens
                or size > self._max_batch_bytes
                or head.alone
                or head.signature != batch[0].signature
            ):
                break
            batch.append(self._waiting.popleft())
        return batch
