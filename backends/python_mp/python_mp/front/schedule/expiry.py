"""Gives up what nobody waits for any more.

To ask whether a client has gone is a round trip to the server (75 us of processor), so a thread of
its own does it, for requests that have waited longer than most ever do, and only so many at a time,
a twentieth of a core: those that come next, and those that were not asked for the longest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from heapq import nsmallest

from ...machine.net import Net
from ...machine.thread import Thread
from ...model.errors import Cancelled, TimedOut
from ...model.request import Request

PERIOD_SECONDS = 0.05
_ASKED_NEXT, _ASKED_IN_TURN = 8, 24
GONE = "the client has cancelled the request"
_LATE = "the request has waited longer than its time-out"


class Expiry:
    """
    Args:
        waiting_since: requests that arrived before a `perf_counter`.
        give_up: takes one of them out, if it still waits, and refuses it.
        net: round its loop.
    """

    def __init__(
        self,
        waiting_since: Callable[[float], list[Request]],
        give_up: Callable[[Request, TimedOut | Cancelled], None],
        net: Net,
    ) -> None:
        self._net = net
        self._waiting_since = waiting_since
        self._give_up = give_up
        self._awake = threading.Event()
        self._stopping = threading.Event()
        self._thread = Thread(target=self._run, name="expiry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something waits."""
        self._awake.set()

    def stop(self) -> None:
        self._stopping.set()
        self._awake.set()
        if self._thread.is_alive():  # It never ran where the load failed.
            self._thread.join()

    def _run(self) -> None:
        self._net.loop("expiry", self._look, self._stopping)

    def _look(self) -> None:
        self._awake.wait()
        if self._stopping.wait(PERIOD_SECONDS):
            return
        self._awake.clear()
        something_waits = True
        try:
            something_waits = self._sweep()
        finally:
            if something_waits:
                self._awake.set()

    def _sweep(self) -> bool:
        """Whether something waited."""
        now = time.perf_counter()
        waiting = self._waiting_since(now)
        for request in waiting:
            if request.deadline <= now:
                self._give_up(request, TimedOut(_LATE))
        for request in _to_ask(waiting):
            if request.arrived <= now - PERIOD_SECONDS and request.is_cancelled():
                self._give_up(request, Cancelled(GONE))
        return bool(waiting)


def _to_ask(waiting: list[Request]) -> list[Request]:
    rest = nsmallest(_ASKED_IN_TURN, waiting[_ASKED_NEXT:], key=lambda request: request.asked)
    return waiting[:_ASKED_NEXT] + rest
