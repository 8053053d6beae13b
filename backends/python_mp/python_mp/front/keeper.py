"""Keeps one group of ranks up: starts it, watches it, ends it, starts the next generation.

    for each generation:  start --> serve until something ends it --> close --> kill all --> wait

It knows nothing of requests; the `Desk` does.
"""

from __future__ import annotations

import logging
import threading
import time
from itertools import count
from pathlib import Path
from typing import Protocol

from ..config import ModelConfig
from ..errors import LoadError
from ..layout import ReplicaLayout
from .cores import CpuSet
from .group import Group
from .inbox import GroupEnded, Messages
from .metrics import Metrics
from .nursery import Nursery
from .status import State, Status
from .watchdog import Watchdog

log = logging.getLogger(__name__)

_PATIENCE = 3
"""Failed starts in a row until requests are refused instead of kept waiting. A rank that says why
it cannot load gets no such patience; a start that was killed from outside does not count."""
_BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Until the next start, after so many that failed. A start takes some tenths of a second of a core,
so the last one keeps a group that cannot start below a hundredth of one."""


class Desk(Protocol):
    """Where the requests are; called from the keeper's thread."""

    def open(self, group: Group) -> None:
        """The group serves."""

    def handle(self, group: Group, messages: Messages) -> None:
        """Ranks have said something."""

    def close(self, group: Group, ended: GroupEnded | None) -> None:
        """The group has ended, or is to be stopped: nothing that it says counts any more."""

    def shut(self, reason: str) -> None:
        """There will be no group for a while: what waits need not wait."""


class Keeper:
    """
    Args:
        cpus: the cores of each rank.
        runtime: a private folder.
        server: pid of the tritonserver with which all this ends; 0 for none.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: ReplicaLayout,
        cpus: list[CpuSet],
        runtime: Path,
        status: Status,
        metrics: Metrics,
        server: int,
        desk: Desk,
    ) -> None:
        self._config = config
        self._layout = layout
        self._cpus = cpus
        self._runtime = runtime
        self._status = status
        self._metrics = metrics
        self._server = server
        self._desk = desk
        self._name = f"{config.name} replica {layout.index}"
        self._nursery: Nursery | None = None
        self._group: Group | None = None
        self._served = False
        self._failed_starts = 0
        self._down = ""
        self._stopping = threading.Event()
        self._first_start = threading.Event()
        # It makes the nursery, so the kernel kills that and all ranks when this thread ends.
        self._thread = threading.Thread(target=self._run, name=f"replica-{layout.index}")

    def start(self) -> None:
        """Returns when the ranks serve. Raises LoadError with the first rank's reason."""
        self._status.write(State.STARTING)
        self._thread.start()
        self._first_start.wait()
        if not self._served:
            self.stop()
            raise LoadError(self._down)

    def stop(self) -> None:
        self._stopping.set()
        if group := self._group:
            group.inbox.wake()
        self._thread.join()
        self._status.remove()

    # -- its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        for generation in count(1):
            group = self._group = Group(self._config, generation)
            self._try(group)
            if self._stopping.is_set() or not self._served:
                break
            waits = min(self._failed_starts, len(_BACKOFF_SECONDS) - 1)
            self._stopping.wait(_BACKOFF_SECONDS[waits])
        self._group = None  # And with it the arena's memory.
        if self._nursery:
            self._nursery.close()
        self._desk.shut(self._down or f"{self._config.name} is being unloaded")
        self._first_start.set()

    def _try(self, group: Group) -> None:
        ended: GroupEnded | None = None
        serves = False
        try:
            watchdog = Watchdog(group, self._config.parameters)
            self._start(group, watchdog)
            serves = True
            self._serve(group, watchdog)
        except GroupEnded as why:
            ended = why.with_traceback(None)  # Whose frames would keep this group from being freed.
        except Exception as bug:  # Nobody would start this thread again.
            log.exception("%s", self._name)
            ended = GroupEnded(f"internal error: {bug!r}")
        stopping = self._stopping.is_set()
        if ended and not stopping:
            self._book_end(group, ended, serves)
        self._desk.close(group, ended)
        group.end(graceful=stopping)

    def _start(self, group: Group, watchdog: Watchdog) -> None:
        began = time.monotonic()
        if self._nursery is None or not self._nursery.is_alive:
            self._nursery = Nursery(self._config.parameters.engine, self._server)
            group.phases["import"] = self._nursery.wait_ready()
        group.spawn(self._nursery, self._layout, self._cpus, self._runtime)
        self._metrics.gauge("generation", group.generation)
        timeout = self._config.parameters.start_timeout_seconds
        group.wait_ready(timeout, self._stopping, watchdog.look, watchdog.interval)
        self._down, self._failed_starts, self._served = "", 0, True
        ranks = [rank.pid for rank in group.ranks]
        self._status.write(State.SERVING, generation=group.generation, ranks=ranks)
        self._metrics.gauge("ranks_alive", group.alive)
        for phase, seconds in group.phases.items():
            self._metrics.gauge("start_seconds", seconds, phase=phase)
        log.info(
            "%s generation %d: %d ranks serve after %.1f s (%s)",
            *(self._name, group.generation, group.alive, time.monotonic() - began),
            ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in group.phases.items()),
        )
        self._desk.open(group)
        self._first_start.set()

    def _serve(self, group: Group, watchdog: Watchdog) -> None:
        while not self._stopping.is_set():
            self._desk.handle(group, group.inbox.wait(watchdog.interval))
            watchdog.look()

    def _book_end(self, group: Group, ended: GroupEnded, served: bool) -> None:
        reason = f"{self._name}: {ended}" + (f": {ended.raised}" if ended.raised else "")
        stacks = group.read_stacks()
        log.error("%s (generation %d)%s", reason, group.generation, stacks and f"\n{stacks}")
        if not served:
            self._failed_starts += not ended.killed
            if ended.raised or self._failed_starts >= _PATIENCE or not self._served:
                self._down = reason
        state = State.DOWN if self._down else State.RESTARTING
        self._status.write(state, reason=reason, generation=group.generation)
        self._metrics.gauge("ranks_alive", 0)
        self._metrics.count("restarts_total")
        self._metrics.count("hangs_total", ended.hung)
        if self._down:
            self._desk.shut(self._down)
