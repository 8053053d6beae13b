"""What waits at a replica without ranks is computed by its peers.

    Home.lend --> Away --> Helper.send --> peers.py of a replica that serves --> its queue and ranks
    Home.settle, Home.take_back <-- Helper <--

Only the threads of this module and of the helpers wait for a peer, and not for long.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from ...machine.net import Net
from ...machine.thread import Thread
from ...model.request import Request
from ..status import Status
from ..supervise.poison import CRASH
from . import line, news
from .helper import Helper, Home

LOOK_SECONDS = 0.25
"""Between two looks for peers."""
_MOST_STRAYS = 2
"""Peers that may be lost with a request until it waits at home."""


def may_go(request: Request) -> bool:
    """To a peer. What may have ended a group stays at home: it would end the peer's as well."""
    known_harmless = request.suspicion < CRASH and request.strays < _MOST_STRAYS
    return known_harmless and not request.guest


class Away:
    """Finds peers that serve, and shares what waits among them."""

    def __init__(self, home: Home, status: Status, runtime: Path, net: Net) -> None:
        self._home = home
        self._status = status
        self._folder = runtime / line.FOLDER
        self._net = net
        self._helpers: dict[str, Helper] = {}
        self._all: list[Helper] = []
        """Those that were sent away, too, until they are gone."""
        self._next_look = 0.0
        self._has_news = False
        self._telling = threading.Lock()
        self._pause: float | None = None
        self._awake = threading.Event()
        self._stopping = threading.Event()
        self._thread = Thread(target=self._run, name="away", daemon=True)

    @property
    def is_hopeful(self) -> bool:
        """Whether a peer helps, or may be about to."""
        return any(helper.is_promising for helper in self._helpers.values())

    @property
    def is_helped(self) -> bool:
        """Whether a peer takes requests now."""
        return any(helper.has_room for helper in self._helpers.values())

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something waits, or has changed."""
        self._awake.set()

    def spread(self) -> None:
        """Tells the peers what is on the poison list, and hears what they know: all, not only those
        that serve, since a client may ask there next. Returns when they have heard, or after a
        pulse; whoever has not by then is told again."""
        self._has_news = True
        self._net.hold("peers", self._tell)
        self.wake()

    def stop(self) -> None:
        """What is away comes back first."""
        self._stopping.set()
        self.wake()
        if self._thread.ident:
            self._thread.join()
        for helper in self._all:
            helper.stop()
        for helper in self._all:
            helper.join()
        self._helpers, self._all = {}, []

    def _run(self) -> None:
        self._net.loop("peers", self._turn, self._stopping)

    def _turn(self) -> None:
        self._awake.wait(self._pause)
        self._awake.clear()
        self._pause = LOOK_SECONDS  # Also if what follows raises.
        if self._stopping.is_set():
            return
        for helper in self._helpers.values():
            helper.recall()
        if self._has_news:
            self._tell()
        if self._home.needs_help:
            self._recruit()
            self._share()
        elif not self._dismiss() and not self._has_news:
            self._pause = None

    def _recruit(self) -> None:
        """Keeps a connection to every peer that serves; what is lost may be had again at once."""
        is_lost = any(helper.is_gone for helper in self._helpers.values())
        if time.monotonic() < self._next_look and not is_lost:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        serving: set[str] = set()
        with suppress(OSError):
            serving |= {line.name_of(**peer) for peer in self._status.helpers()}
        helpers = {name: each for name, each in self._helpers.items() if not each.is_gone}
        for name in serving - helpers.keys():
            with suppress(OSError):
                connection = line.connect(self._folder, name)
                helpers[name] = Helper(connection, self._home, self.wake, self._net)
                self._all = [*(each for each in self._all if not each.is_gone), helpers[name]]
        for name, helper in helpers.items():
            helper.serves = name in serving
        self._helpers = helpers

    def _share(self) -> None:
        """The least busy one gets the next request."""
        if not self.is_hopeful:
            self._home.stand_alone()
        while free := [helper for helper in self._helpers.values() if helper.has_room]:
            request = self._home.lend()
            if request is None:
                return
            min(free, key=lambda helper: helper.load).send(request)

    def _dismiss(self) -> bool:
        """Whether helpers are left; those that still compute stay."""
        for helper in self._helpers.values():
            if not helper.load:
                helper.stop()
        self._helpers = {name: each for name, each in self._helpers.items() if each.load}
        return bool(self._helpers)

    def _tell(self) -> None:
        with self._telling, suppress(OSError):
            names = [line.name_of(**peer) for peer in self._status.peers()]
            self._has_news = not news.spread(self._home, self._folder, names)
