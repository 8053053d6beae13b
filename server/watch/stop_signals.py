"""What the user wishes by signals: the first one to drain, the second one to end at once."""

import signal
import time
from collections.abc import Callable
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_SIGNAL = 1.0  # seconds; one wish may arrive twice: by the process group and by make


class StopSignals:
    """
    Attributes:
        is_asked: to stop.
        is_urgent: to stop at once.

    Args:
        wake, say: called in the signal handler.
    """

    def __init__(self, wake: Callable[[], None], say: Callable[[str], None]) -> None:
        self.is_asked = self.is_urgent = False
        self._first = 0.0
        self._wake = wake
        self._say = say

    def listen(self) -> None:
        """From the main thread. What `nohup` ignores stays ignored."""
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        self._wake()
        if not self.is_asked:
            self.is_asked, self._first = True, now
            self._say("draining; once more ends it at once")
        elif now - self._first > SAME_SIGNAL:
            self.is_urgent = True
