"""Keeps one group of ranks up: starts it, watches it, ends it, starts the next generation.

    for each generation:  start --> serve until something ends it --> close --> kill all --> wait

It knows nothing of requests; its `Owner` does. Whatever it meets, also inside itself, is the end of
one generation at most: every step is in the net.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from ...machine.thread import Thread
from ...model.config import ModelConfig
from ...model.errors import LoadError, describe
from ...model.layout import ReplicaLayout
from ..group import Group
from ..inbox import GroupEnded, Messages
from ..metrics import Metrics
from ..place.cores import CpuSet
from ..status import State, Status
from . import scratch
from .forkserver_client import ForkserverClient, ForkserverLost
from .host_search import PAUSE_SECONDS, HostSearch
from .other_hosts import Hosts, announce
from .patience import Patience
from .watchdog import Watchdog

log = logging.getLogger(__name__)

_REFRESH_SECONDS = 1.0


class Owner(Protocol):
    """Has the requests that the group computes; called from the supervisor's thread."""

    def group_serves(self, group: Group) -> None:
        """It takes batches from now on."""

    def handle(self, group: Group, messages: Messages) -> None:
        """Ranks have said something."""

    def group_ended(self, group: Group, ended: GroupEnded | None) -> None:
        """The group has ended, or is to be stopped: nothing that it says counts any more."""

    def gave_up(self, reason: str) -> None:
        """There will be no group for a while: what waits need not wait."""


class Supervisor:
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
        owner: Owner,
    ) -> None:
        self._config = config
        self._layout = layout
        self._cpus = cpus
        self._runtime = runtime
        self._status = status
        self._metrics = metrics
        self._server = server
        self._owner = owner
        self._name = f"{config.name} replica {layout.index}"
        self._forkserver: ForkserverClient | None = None
        self._group: Group | None = None
        self._net = metrics.net
        start_seconds, apart = config.parameters.start_timeout_seconds, config.parameters.hosts > 1
        self._patience = Patience(start_seconds, apart=apart)
        self._generation = 0
        self._down = ""
        self._stopping = threading.Event()
        self._first_start = threading.Event()
        # It makes the forkserver, so the kernel kills that and all ranks when this thread ends.
        self._thread = Thread(target=self._run, name=f"replica-{layout.index}")

    def start(self) -> None:
        """Returns when the ranks serve. Raises LoadError with the first rank's reason."""
        self._status.write(State.STARTING)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise LoadError(f"{self._name}: {error}") from None
        self._first_start.wait()
        if not self._patience.served:
            self.stop()
            raise LoadError(self._down)

    def stop(self) -> None:
        self._stopping.set()
        if group := self._group:
            group.inbox.wake()
        if self._thread.ident:
            self._thread.join()
        self._status.remove()

    # -- its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._net.hold("supervisor", lambda: scratch.remove_leftovers(self._runtime))
            self._net.loop("supervisor", self._live, self._stopping)
            self._net.hold("supervisor", self._stop_forkserver)
            reason = self._down or f"{self._config.name} is being unloaded"
            self._net.hold("supervisor", lambda: self._owner.gave_up(reason))
        finally:
            self._first_start.set()

    def _live(self) -> None:
        """One generation, and the pause until the next one."""
        self._generation += 1
        self._patience.begin()
        ended = self._try()
        self._clean_up(ended)
        if self._patience.is_over(ended):
            self._stopping.set()
        self._pause(self._patience.seconds(ended))

    def _try(self) -> GroupEnded | None:
        """Why it ended; None if it was to stop."""
        try:
            group = self._group = Group(self._config, self._generation)
            watchdog = self._start(group)
            self._serve(group, watchdog)
        except GroupEnded as why:
            return why.with_traceback(None)  # Whose frames would keep this group from being freed.
        except ForkserverLost as lost:
            return GroupEnded(str(lost))
        except Exception as error:
            self._net.catch("supervisor", error)
            is_weak = isinstance(error, OSError | MemoryError)  # As evidence against requests.
            return GroupEnded(f"internal error: {describe(error)}", killed=is_weak, own=True)
        return None

    def _start(self, group: Group) -> Watchdog:
        began = time.monotonic()
        limit = self._config.parameters.start_timeout_seconds
        deadline = began + limit
        is_new = self._forkserver is None
        forkserver = self._any_forkserver()
        watchdog = Watchdog(group, self._config.parameters, forkserver.pid)
        self._wait_for(forkserver, watchdog, deadline)
        if is_new:
            group.phases["import"] = time.monotonic() - began
        hosts = self._find_hosts(watchdog)
        if hosts:  # It was waited for them, and not for the ranks.
            deadline = time.monotonic() + limit
        group.spawn(forkserver, self._layout, self._cpus, self._runtime, hosts)
        self._metrics.gauge("generation", group.generation)
        group.wait_ready(deadline, self._stopping, watchdog.look, watchdog.interval)
        self._owner.group_serves(group)
        self._patience.serves()
        self._down = ""
        ranks = [(rank.pid, rank.host) for rank in group.ranks]
        self._status.write(State.SERVING, generation=group.generation, ranks=ranks)
        self._metrics.gauge("ranks_alive", group.alive)
        for phase, took in group.phases.items():
            self._metrics.gauge("start_seconds", took, phase=phase)
        log.info(
            "%s generation %d: %d ranks serve after %.1f s (%s)",
            *(self._name, group.generation, group.alive, time.monotonic() - began),
            ", ".join(f"{phase} {took:.2f}" for phase, took in group.phases.items()),
        )
        self._first_start.set()
        return watchdog

    def _serve(self, group: Group, watchdog: Watchdog) -> None:
        while not self._stopping.is_set():
            self._owner.handle(group, group.inbox.wait(watchdog.interval))
            watchdog.look()
            self._status.refresh()

    def _clean_up(self, ended: GroupEnded | None) -> None:
        """Whatever of it fails, the rest is done."""
        group, stopping = self._group, self._stopping.is_set()
        steps: list[Callable[[], None]] = [self._drop_unsound_forkserver]
        if ended and not stopping:
            served = bool(group and group.alive)
            steps += [partial(self._say, group, ended), partial(self._book, ended, served)]
        if group:
            steps += [partial(self._owner.group_ended, group, None if stopping else ended)]
            steps += [partial(self._end, group, stopping)]
        for step in steps:
            self._net.hold("supervisor", step)
        self._group = None  # And with it the arena's memory.

    def _end(self, group: Group, graceful: bool) -> None:
        try:
            group.stop() if graceful else group.kill()
        except Exception:
            self._kill_forkserver()  # And the ranks with it.
            raise

    def _say(self, group: Group | None, ended: GroupEnded) -> None:
        stacks = group.read_stacks() if group else ""
        reason, generation = self._reason(ended), self._generation
        log.error("%s (generation %d)%s", reason, generation, stacks and f"\n{stacks}")

    def _book(self, ended: GroupEnded, served: bool) -> None:
        if not served and self._patience.failed(ended):
            self._down = self._reason(ended)
        state = State.DOWN if self._down else State.RESTARTING
        self._status.write(state, reason=self._reason(ended), generation=self._generation)
        self._metrics.gauge("ranks_alive", 0)
        self._metrics.count("restarts_total")
        self._metrics.count("hangs_total", ended.hung)
        if self._down:
            self._owner.gave_up(self._down)

    def _reason(self, ended: GroupEnded) -> str:
        return f"{self._name}: {ended}" + (f": {ended.raised}" if ended.raised else "")

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stopping.wait(min(left, _REFRESH_SECONDS)):
                return
            self._status.refresh()

    def _find_hosts(self, watchdog: Watchdog) -> Hosts | None:
        parameters, is_first = self._config.parameters, not self._patience.served
        if parameters.hosts == 1:
            return None
        search = HostSearch(self._name, parameters, first=is_first)
        while not (hosts := search.look()):
            if search.is_long and not self._down:
                self._go_down(f"{self._name}: {search.missing}")
            watchdog.look()
            if self._stopping.wait(PAUSE_SECONDS):
                raise GroupEnded("stopped while it started")
            self._status.refresh()
        return hosts

    def _go_down(self, reason: str) -> None:
        self._down = reason
        self._status.write(State.DOWN, reason=reason, generation=self._generation)
        self._owner.gave_up(reason)

    # -- the forkserver --------------------------------------------------------------------------

    def _any_forkserver(self) -> ForkserverClient:
        if self._forkserver is None:
            engine, folder = self._config.parameters.engine, self._config.folder
            self._forkserver = ForkserverClient(engine, folder, self._server)
            if self._config.parameters.hosts > 1:
                announce(self._config.source)  # They import it meanwhile, too.
        return self._forkserver

    def _wait_for(self, forkserver: ForkserverClient, watchdog: Watchdog, deadline: float) -> None:
        while not forkserver.wait_ready(watchdog.interval):
            watchdog.look()
            if self._stopping.is_set():
                raise GroupEnded("stopped while it started")
            if time.monotonic() >= deadline:
                parameters = self._config.parameters
                raise GroupEnded(
                    f"engine {parameters.engine} was not imported within "
                    f"{parameters.start_timeout_seconds} s"
                )

    def _drop_unsound_forkserver(self) -> None:
        if self._forkserver and not self._forkserver.is_sound:
            self._kill_forkserver()

    def _stop_forkserver(self) -> None:
        forkserver, self._forkserver = self._forkserver, None
        if forkserver:
            forkserver.stop()

    def _kill_forkserver(self) -> None:
        forkserver, self._forkserver = self._forkserver, None
        if forkserver:
            forkserver.kill()
