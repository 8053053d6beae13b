"""How long to wait before the next try."""

DELAYS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds
SERVED = 60.0  # seconds after which a failure counts as the first one again


class Backoff:
    """At once at first, then ever later; from the beginning after a time of service."""

    def __init__(self) -> None:
        self._failures = 0
        self._tried = 0.0

    def failed(self, now: float, longest: float = DELAYS[-1]) -> float:
        """When to try again, after a failure at `now`; both in the same clock's seconds.

        Args:
            longest: seconds to wait at most.
        """
        if now - self._tried > SERVED:
            self._failures = 0
        delay = min(longest, DELAYS[min(self._failures, len(DELAYS) - 1)])
        self._failures += 1
        self._tried = now + delay
        return self._tried
