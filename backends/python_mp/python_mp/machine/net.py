"""One net round the loop of every thread of a front: what nobody expected does not end the thread.

    net = Net(count)
    net.loop("expiry", turn, stopping)     calls `turn` again and again until `stopping` is set
    net.hold("peers", serve)                calls it once; False if it raised

An error is logged once, counted for /metrics, kept for /status, and met with a pause. Nothing here
raises, whatever becomes of logs and files.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ..model.errors import describe

log = logging.getLogger(__name__)

THREADS = ("supervisor", "expiry", "metrics", "peers")
PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds after so many errors in a row. The last one is short, so that all goes on soon after a
disk that was full has room again."""
_AGAIN_SECONDS = 600.0


@dataclass
class Caught:
    """What one thread has met."""

    count: int = 0
    text: str = ""
    """The last one's."""
    at: float = 0.0
    """When that was; seconds since 1970."""


class Net:
    """
    Args:
        count: is called with the thread's name for each error; must not raise.
    """

    def __init__(self, count: Callable[[str], None] = lambda thread: None) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._caught: dict[str, Caught] = {}
        self._logged: dict[tuple[str, str], float] = {}

    def loop(self, thread: str, turn: Callable[[], object], stopping: threading.Event) -> None:
        failures = 0
        while not stopping.is_set():
            failures = 0 if self.hold(thread, turn) else failures + 1
            if failures:
                stopping.wait(pause(failures))

    def hold(self, thread: str, body: Callable[[], object]) -> bool:
        """Whether `body` came to its end."""
        try:
            body()
        except Exception as error:
            self.catch(thread, error)
            return False
        return True

    def catch(self, thread: str, error: Exception) -> None:
        """Books an error. Its frames are let go, and with them what they hold."""
        with suppress(Exception):  # No memory to book it: then it is not booked.
            self._book(thread, error)
        error.__traceback__ = None

    def _book(self, thread: str, error: Exception) -> None:
        text = describe(error)
        with self._lock:
            before = self._caught.get(thread, Caught())
            self._caught[thread] = Caught(before.count + 1, text, time.time())
            is_new = self._is_new(thread, text)
        if is_new:
            with suppress(Exception):
                log.error("internal error in thread %s, which goes on", thread, exc_info=error)
        self._count(thread)

    def said(self) -> dict[str, dict[str, Any]]:
        """For /status: by thread, what it has met so far; empty if nothing."""
        with self._lock:
            return {thread: asdict(caught) for thread, caught in self._caught.items()}

    def _is_new(self, thread: str, text: str) -> bool:
        now = time.monotonic()
        self._logged = {key: at for key, at in self._logged.items() if now - at < _AGAIN_SECONDS}
        return self._logged.setdefault((thread, text), now) == now


def pause(failures: int) -> float:
    """Seconds to wait after so many errors in a row."""
    return PAUSES[min(failures, len(PAUSES)) - 1]
