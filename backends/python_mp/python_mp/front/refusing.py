"""What is not computed: answered by its reason, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..model.errors import Cancelled, PythonMpError, RequestFailed, TimedOut, TooLarge, Unavailable
from ..model.request import Request
from .metrics import Metrics
from .supervise.poison import PoisonList

POISON = "this request has ended two groups of ranks"
_REASONS: dict[type[PythonMpError], str] = {
    TimedOut: "timeout",
    TooLarge: "invalid",
    Cancelled: "cancelled",
    RequestFailed: "poison",
    Unavailable: "down",
}


class Refusals:
    """
    Args:
        poison: requests that are refused before they wait.
    """

    def __init__(self, metrics: Metrics, poison: PoisonList) -> None:
        self._metrics = metrics
        self._poison = poison

    def refuse(
        self, requests: Sequence[Request], error: PythonMpError, reason: str | None = None
    ) -> None:
        """Parts of one request fail together, and count once; a guest that goes home does not.

        Args:
            reason: the metric's label, where the error alone does not say it.
        """
        goes_home = type(error) in (Unavailable, TooLarge, Cancelled)
        refused = sum(self.fail([r], error) * (not (r.guest and goes_home)) for r in requests)
        self._metrics.count("refused_total", refused, reason=reason or _REASONS[type(error)])

    def refuse_poison(self, requests: Iterable[Request]) -> None:
        if self._poison:
            poison = [request for request in requests if request in self._poison]
            self.refuse(poison, RequestFailed(POISON))

    @staticmethod
    def fail(requests: Iterable[Request], error: PythonMpError) -> int:
        """How many of them had no answer yet."""
        waited = 0
        for request in requests:
            waited += not request.answered
            request.deliver(request.answer.fail, error)
        return waited
