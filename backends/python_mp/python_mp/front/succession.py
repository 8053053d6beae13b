"""What becomes of streams when a newer version of their model serves.

    a newer one serves --drain_seconds--> the same model: it goes on with them, the ranks here end
                                          another one: they end with an error that says so

Triton gives new requests to the newer version at once, and unloads this one when nothing is in
flight here any more; of that it says nothing. So the replicas' status files are looked at.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from ..machine.net import Net
from ..machine.thread import Thread
from ..model.config import ModelConfig
from ..model.errors import Unavailable
from .open_requests import OpenRequests
from .peers.away import Away
from .schedule.policy import Schedule
from .status import Status
from .supervise.supervisor import Supervisor

LOOK_SECONDS = 0.5


class Succession:
    """Of a replica whose version may be replaced."""

    def __init__(
        self,
        config: ModelConfig,
        status: Status,
        schedule: Schedule,
        open_requests: OpenRequests,
        away: Away,
        supervisor: Supervisor,
        net: Net,
    ) -> None:
        self._parameters = config.parameters
        self._status = status
        self._schedule = schedule
        self._open = open_requests
        self._away = away
        self._supervisor = supervisor
        self._net = net
        self._since: float | None = None
        self._stopping = threading.Event()
        self._thread = Thread(target=self._run, name="succession", daemon=True)

    def start(self) -> None:
        if self._parameters.generates:  # Others' requests are over soon.
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident:
            self._thread.join()

    def _run(self) -> None:
        self._net.loop("succession", self._turn, self._stopping)

    def _turn(self) -> None:
        if self._stopping.wait(LOOK_SECONDS) or not self._schedule.has_open:
            return
        newer = self._status.successors()
        if not newer:
            self._since, self._status.leaves = None, False
            return
        self._since = self._since or time.monotonic()
        if time.monotonic() - self._since >= self._parameters.drain_seconds:
            self._end(newer)

    def _end(self, newer: list[dict[str, Any]]) -> None:
        if self._status.heirs():
            self._hand_over()
            return
        version = max(each["version"] for each in newer)
        error = Unavailable(
            f"version {version}, another model, has taken the place of the one that wrote this"
            " answer; ask again"
        )
        for request in self._open.since(math.inf):
            self._open.give_up(request, error)

    def _hand_over(self) -> None:
        """When somebody is there to whom; then the ranks are needed no more."""
        self._status.leaves = True
        self._away.wake()
        if self._away.is_helped:
            self._supervisor.stop()
            self._stopping.set()
