"""From a batch that every rank is through with to the clients of its requests."""

from __future__ import annotations

from collections.abc import Callable

from ..model.batch import Batch
from ..model.config import ModelConfig
from ..model.errors import InvalidInput, RequestFailed
from ..model.request import Request
from ..wire.message import Refusal
from .flights import Flight
from .refusing import Refusals


class Delivery:
    """
    Args:
        ask_again: takes requests to their places in the queue.
    """

    def __init__(
        self,
        config: ModelConfig,
        refusals: Refusals,
        ask_again: Callable[[list[Request]], None],
    ) -> None:
        self._config = config
        self._refusals = refusals
        self._ask_again = ask_again
        self.last_seconds = 0.0
        """That the last batch took a rank."""

    def answer(self, flight: Flight) -> None:
        if flight.refusal or flight.outputs is None:
            self._refuse(flight.batch, flight.refusal or Refusal("RequestFailed", "no outputs"))
            return
        self.last_seconds = flight.steps[-1].compute
        try:
            answers = flight.batch.split(
                flight.outputs, self._config.outputs, self._config.parameters.most_nbytes
            )
        except RequestFailed as error:  # One of them may have done it to all.
            self._refuse(flight.batch, Refusal("RequestFailed", str(error)))
            return
        for request, outputs in zip(flight.batch.requests, answers, strict=True):
            request.deliver(request.send, outputs)

    def _refuse(self, batch: Batch, refusal: Refusal) -> None:
        """Only of those that the ranks have named, or of one that was alone, is it known that the
        refusal is theirs. The others are asked again: without those, or else in halves."""
        named = batch.owners(refusal.sequences) if refusal.sequences else []
        if len(batch.requests) == 1:
            named = list(batch.requests)
        if refusal.error == InvalidInput.__name__:
            self._refusals.refuse(named, InvalidInput(refusal.text), "invalid")
        else:
            self._refusals.refuse(named, RequestFailed(refusal.text))
        rest = [request for request in batch.requests if not request.answered]
        # Not with those that came meanwhile: batches of all that there is leave the ranks idle
        # while the clients ask again.
        company = len(rest) if named else (len(batch.requests) + 1) // 2
        for request in rest:
            request.company = company
        self._ask_again(rest)
