"""The schedule of models that answer a request by one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from ...model.batch import Batch
from ...model.config import ModelConfig
from ...model.errors import InvalidInput
from ...model.request import Answer, Array, Request, read_request
from ...model.size import Size
from ..delivery import Delivery
from ..flights import Flight, Flights
from ..inbox import GroupEnded
from ..refusing import Refusals
from ..supervise.poison import guilty
from .parts import cut
from .waiting import Waiting

_QUICK_SECONDS = 5e-3


class OneShot(Waiting[Request]):
    """First come, first served. A batch is cut only when the ranks can take it, so it is as large
    as the load makes it: no delay is ever added to wait for company.

    Args:
        ask_again: puts requests back, with the replica's lock.
    """

    def __init__(
        self,
        config: ModelConfig,
        refusals: Refusals,
        ask_again: Callable[[list[Request]], None],
    ) -> None:
        super().__init__(config.parameters)
        self._config = config
        self._delivery = Delivery(config, refusals, ask_again)
        self._numbers = count(1)

    def start(self) -> None:
        pass

    @property
    def has_open(self) -> bool:
        return len(self) > 0

    @property
    def is_quick(self) -> bool:
        return self._delivery.last_seconds <= _QUICK_SECONDS

    def prepare(self, request: Request) -> list[Request]:
        """What is larger than a batch in parts."""
        return cut(request, self._config)

    def add(self, request: Request) -> None:
        if not request.size.fits(self.bounds):
            raise InvalidInput(f"the request {request.size.excess(self.bounds)}")
        super().add(request)

    def group_serves(self, blocks: int) -> None:
        pass

    def next_batch(self, flights: Flights) -> Batch | None:
        """A suspect, which was in hand when a group died, flies alone."""
        head = self.head
        if head is None or (not flights.idle and (head.suspicion > 0 or flights.holds_suspect)):
            return None
        return Batch(next(self._numbers), tuple(self.next_requests()))

    def next_requests(self) -> list[Request]:
        """The head of the queue and all behind it that may share its batch, within the bounds;
        nothing if nobody waits."""
        batch: list[Request] = []
        size, company = Size(0, 0, 0), math.inf
        while head := self.head:
            size, company = size.plus(head.size), min(company, 1 if head.alone else head.company)
            if batch and not (
                len(batch) < company
                and head.signature == batch[0].signature
                and size.fits(self.bounds)
            ):
                break
            batch.append(self.take())
        return batch

    def lost(self, batch: Batch) -> None:
        pass

    def book(self, flight: Flight) -> None:
        pass

    def answer(self, flight: Flight) -> None:
        self._delivery.answer(flight)

    def guest(
        self, inputs: Mapping[str, Array], said: Mapping[str, Any], answer: Answer
    ) -> Request:
        return read_request(inputs, self._config, answer)

    def hear(self, request: Request, text: str) -> None:
        """Its answer comes whole."""

    def in_hand(self, flights: Flights) -> list[Request]:
        return flights.in_hand

    def guilty(self, flights: Flights, ended: GroupEnded) -> list[Request]:
        return guilty(flights.in_hand, ended)

    def stop(self) -> None:
        pass
