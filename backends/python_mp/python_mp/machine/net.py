"""One net round the body of every loop: what nobody expected ends no thread.

    net = Net()
    net["the probe"].run(ask)               calls it; not while the pause after an error lasts
    net.hold("peers", serve)                calls it in any case
    net.loop("expiry", turn, stopping)      calls `turn` again and again until `stopping` is set

An error is logged once, counted, kept for /status, and met with a pause. Nothing here raises,
whatever becomes of logs and files.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..model.errors import describe
from . import backoff

log = logging.getLogger(__name__)

THREADS = ("supervisor", "expiry", "metrics", "peers", "outbox", "departures", "succession")
"""Of a front."""
PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds after so many errors in a row. The last one is short, so that all goes on soon after a
disk that was full has room again."""
_AGAIN_SECONDS = 600.0
"""After which the same error is logged once more."""

Body = Callable[[], object]


class Loop:
    """What one loop has met. Threads may share one; `run` is for one of them.

    Attributes:
        errors: how many there were.
        text: the last one's; empty if there was none.
        at: when that was; seconds since 1970.
    """

    def __init__(self, name: str, net: Net) -> None:
        self.name = name
        self.errors = 0
        self.text = ""
        self.at = 0.0
        self._net = net
        self._lock = threading.Lock()
        self._fails = False
        self._in_a_row = 0
        self._due = 0.0
        self._logged: dict[str, float] = {}

    @property
    def error(self) -> str:
        """What its last run failed with; empty if it did not."""
        return self.text if self._fails else ""

    @property
    def pause(self) -> float:
        """Seconds that are left of the pause after an error."""
        return max(0.0, self._due - time.monotonic())

    def run(self, body: Body) -> bool:
        """Whether `body` came to its end. While the pause after an error lasts, it is not run."""
        if self.pause:
            return False
        if self.hold(body):
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        self._due = time.monotonic() + backoff.after(self._in_a_row, PAUSES)
        return False

    def hold(self, body: Body) -> bool:
        """Whether `body` came to its end."""
        try:
            body()
        except Exception as error:
            self.catch(error)
            return False
        if self._fails:
            self._recovered()
        return True

    def catch(self, error: Exception) -> None:
        """Books an error. Its frames are let go, and with them what they hold."""
        with suppress(Exception):  # No memory to book it: then it is not booked.
            self._book(error)
        error.__traceback__ = None

    def _book(self, error: Exception) -> None:
        with self._lock:
            self.errors, self.text, self.at = self.errors + 1, describe(error), time.time()
            self._fails = True
            is_new = self._is_new(self.text)
        if is_new:
            self._net.tell(self.name, error)
        self._net.count(self.name)

    def _is_new(self, text: str) -> bool:
        now = time.monotonic()
        self._logged = {key: at for key, at in self._logged.items() if now - at < _AGAIN_SECONDS}
        return self._logged.setdefault(text, now) == now

    def _recovered(self) -> None:
        with self._lock:
            self._fails = False
            if self._net.says_recovery:
                self._logged.clear()
        self._net.tell_recovery(self.name)


class Net:
    """All loops of one process, by name.

    Args:
        count: is called with the loop's name for each error.
        say: takes lines about new errors and about loops that work again; without it the errors
            alone go to the log.
    """

    def __init__(
        self,
        count: Callable[[str], object] = lambda loop: None,
        say: Callable[[str], object] | None = None,
    ) -> None:
        self.count = count
        self._say = say
        self._lock = threading.Lock()
        self._loops: dict[str, Loop] = {}

    def __getitem__(self, name: str) -> Loop:
        with self._lock:
            if name not in self._loops:
                self._loops[name] = Loop(name, self)
            return self._loops[name]

    @property
    def loops(self) -> list[Loop]:
        """In the order of their names."""
        with self._lock:
            return [self._loops[name] for name in sorted(self._loops)]

    def loop(self, name: str, turn: Body, stopping: threading.Event) -> None:
        failures = 0
        while not stopping.is_set():
            failures = 0 if self.hold(name, turn) else failures + 1
            if failures:
                stopping.wait(backoff.after(failures, PAUSES))

    def hold(self, name: str, body: Body) -> bool:
        """Whether `body` came to its end."""
        return self[name].hold(body)

    def catch(self, name: str, error: Exception) -> None:
        """Books an error that was caught elsewhere."""
        self[name].catch(error)

    def said(self) -> dict[str, dict[str, Any]]:
        """For a front's status: by loop, what it has met so far; empty if nothing."""
        return {
            loop.name: {"count": loop.errors, "text": loop.text, "at": loop.at}
            for loop in self.loops
            if loop.errors
        }

    @property
    def says_recovery(self) -> bool:
        """Whether one hears that a loop works again, and so of the next error of the same kind."""
        return self._say is not None

    def tell(self, name: str, error: Exception) -> None:
        """Log a new error."""
        with suppress(Exception):
            if self._say is None:
                log.error("internal error in thread %s, which goes on", name, exc_info=error)
            else:
                trace = "".join(traceback.format_exception(error)).rstrip()
                self._say(f"error: {name}: {describe(error)}; it is tried again\n{trace}")

    def tell_recovery(self, name: str) -> None:
        """Log that a loop works again, where that is said at all."""
        with suppress(Exception):
            if self._say is not None:
                self._say(f"{name}: works again")
