"""When a group that ended is started again, and how long requests are kept for it meanwhile."""

from __future__ import annotations

import errno
import math
import os
import time

from ...machine.backoff import after
from ...machine.net import PAUSES
from ..inbox import GroupEnded

_KEPT = 3
"""Failed starts in a row until requests are refused instead of kept waiting. A rank that says why
it cannot load gets no such patience; a start that was killed from outside does not count."""
_DELAYS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Until the next start, after so many that the ranks have failed. A start takes some tenths of a
second of a core, so the last one keeps a group that cannot start below a hundredth of one. Where it
was the front that could not (no descriptor, no memory), the net's pauses are enough."""
_FAULT_SHARE = 3.0
"""Where a rank tells of such a fault, so many times as long as the start took: it serves soon after
a full disk has room, and to try takes a quarter of the time at most."""
_FIRST_SECONDS = 20.0
"""A first start that meets such a fault is tried again for so long: nobody else would load the
model when it has passed."""
_FAULTS = tuple(
    os.strerror(number)
    for number in (
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE),
        *(errno.ENOMEM, errno.EIO, errno.EAGAIN),
    )
)


class Patience:
    """
    Args:
        start_seconds: the limit of a start.
        apart: whether its ranks are on several hosts, of which any may be lost.
    """

    def __init__(self, start_seconds: float, *, apart: bool = False) -> None:
        self.served = False
        """It has, at least once."""
        most = start_seconds if apart else min(_FIRST_SECONDS, start_seconds)
        self._first_deadline = time.monotonic() + most
        self._apart = apart
        self._began = 0.0
        self._failed = 0
        self._own = 0

    def begin(self) -> None:
        """A generation starts."""
        self._began = time.monotonic()

    def serves(self) -> None:
        """Its start is over."""
        self.served, self._failed, self._own = True, 0, 0

    def failed(self, ended: GroupEnded) -> bool:
        """Books a start that failed. Whether requests are to be refused from now on."""
        self._own += ended.own
        self._failed += not (ended.own or ended.killed)
        return bool(ended.raised) or self._own + self._failed >= _KEPT or not self.served

    def is_over(self, ended: GroupEnded | None) -> bool:
        """Whether nothing is to be tried again: the model cannot be loaded."""
        may_pass = ended and (_is_fault(ended) or (self._apart and ended.killed))
        return not self.served and not (may_pass and time.monotonic() < self._first_deadline)

    def seconds(self, ended: GroupEnded | None) -> float:
        """Until the next start, of a generation that has just ended so."""
        most = math.inf
        if ended and _is_fault(ended):
            most = max(PAUSES[-1], _FAULT_SHARE * (time.monotonic() - self._began))
        return max(min(most, after(self._failed, _DELAYS)), after(self._own, PAUSES))


def _is_fault(ended: GroupEnded) -> bool:
    """Of the operating system, so that it may pass; a rank's is only known by its text."""
    return (ended.own and ended.killed) or any(fault in ended.raised for fault in _FAULTS)
