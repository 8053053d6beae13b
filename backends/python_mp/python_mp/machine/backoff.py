"""How long to wait before the next try."""

from __future__ import annotations

import math
from collections.abc import Sequence

DELAYS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds to wait after the first failure, the second, and so on: where nothing else is said."""
SERVED = 60.0
"""Seconds after which a failure counts as the first one again."""


def after(failures: int, delays: Sequence[float]) -> float:
    """Seconds to wait after so many failures in a row; the last delay is that of all later ones."""
    return delays[min(failures, len(delays)) - 1] if failures else 0.0


class Backoff:
    """Ever later, and from the beginning after a time of service.

    Args:
        delays: seconds, as `DELAYS`.
    """

    def __init__(self, delays: Sequence[float] = ()) -> None:
        self._delays = delays or DELAYS
        self._failures = 0
        self._tried = 0.0

    def failed(self, now: float, longest: float = math.inf) -> float:
        """When to try again, after a failure at `now`; both in the same clock's seconds.

        Args:
            longest: seconds to wait at most.
        """
        if now - self._tried > SERVED:
            self._failures = 0
        self._failures += 1
        self._tried = now + min(longest, after(self._failures, self._delays))
        return self._tried
