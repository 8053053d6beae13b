"""While a replica is down: only peers may compute what waits, and nothing waits for nobody.

    serves --its group ends--> restarts --no start succeeds, a newer version is there--> down
      ^---------------------------+---------------------------------------------------------+

What comes into the queue, or back into it, is looked at after that; and all that is there when the
outage begins, and when the last peer is lost. So nobody waits for what never comes.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from ..model.errors import Unavailable
from ..model.request import Request
from .peers.away import may_go
from .refusing import Refusals
from .schedule.policy import Schedule


class Outage:
    """
    Args:
        lock: the replica's.
        is_helped: whether a peer computes for this replica, or may be about to.
    """

    def __init__(
        self,
        schedule: Schedule,
        lock: Lock,
        refusals: Refusals,
        is_helped: Callable[[], bool],
    ) -> None:
        self._schedule = schedule
        self._lock = lock
        self._refusals = refusals
        self._is_helped = is_helped
        self.reason = "it is still being loaded"
        """Empty where there is none."""

    def begin(self, reason: str) -> None:
        with self._lock:
            self.reason = reason
        self.refuse_stranded()

    def end(self) -> None:
        """With the replica's lock."""
        self.reason = ""

    def refusal(self, request: Request) -> Unavailable | None:
        """Why it is of no use to wait with this one; with the replica's lock."""
        if not self.reason or (may_go(request) and self._is_helped()):
            return None
        return Unavailable(self.reason)

    def refuse_stranded(self) -> None:
        """What waits for nobody."""
        with self._lock:
            error = Unavailable(self.reason)
            stranded = self._schedule.take_out(lambda each: self.refusal(each) is not None)
        self._refusals.refuse(stranded, error, "down")
