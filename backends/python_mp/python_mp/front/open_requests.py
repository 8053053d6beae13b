"""Requests that have no answer yet: what comes in, and what nobody waits for any more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from threading import Lock

from ..model.errors import InvalidInput, PythonMpError, RequestFailed
from ..model.request import Request
from .metrics import Metrics
from .refusing import POISON, Refusals
from .schedule.policy import Schedule
from .supervise.poison import PoisonList


class OpenRequests:
    """
    Args:
        lock: the replica's, which the schedule is used with.
    """

    def __init__(
        self,
        schedule: Schedule,
        lock: Lock,
        refusals: Refusals,
        poison: PoisonList,
        metrics: Metrics,
    ) -> None:
        self._schedule = schedule
        self._lock = lock
        self._refusals = refusals
        self._poison = poison
        self._metrics = metrics

    def prepare(self, requests: Sequence[Request]) -> list[Request]:
        """What is larger than a batch in parts; refuses what cannot be computed."""
        parts: list[Request] = []
        for request in requests:
            try:
                parts += self._schedule.prepare(request)
            except InvalidInput as error:
                self._refusals.refuse([request], error, "invalid")
        self._refusals.refuse_poison(parts)
        return [part for part in parts if not part.answered]

    def since(self, moment: float) -> list[Request]:
        """Those that came before that `perf_counter`, oldest first."""
        with self._lock:
            self._schedule.drop_answered()
            self._metrics.gauge("queue_requests", len(self._schedule))
            self._metrics.gauge("queue_bytes", self._schedule.nbytes)
            return self._schedule.waiting_since(moment)

    def give_up(self, request: Request, error: PythonMpError) -> None:
        """Refuses it, unless it has gone to be computed."""
        with self._lock:
            waited = self._schedule.remove(request)
        if waited:
            self._refusals.refuse([request], error)

    def refuse_poison(self) -> None:
        """What is known by now to end groups."""
        for request in self.since(math.inf):
            if request in self._poison:
                self.give_up(request, RequestFailed(POISON))
