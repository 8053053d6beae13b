"""A simulated machine: its clock, its threads and its processes, all within one real thread.

A simulated thread is a greenlet that gives way only where a real one may have to wait: for a lock,
a socket, a time. Then the machine picks the next one by a seeded generator, and where all wait it
turns the clock to the next moment at which one need not. So nothing sleeps, every run can be
repeated, and between any two such points a process can be killed or stopped.
"""

from __future__ import annotations

import os
import random
import select
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from math import inf
from signal import SIGKILL
from typing import Any
from weakref import ref

from greenlet import GreenletExit, getcurrent, greenlet

_ALWAYS = select.POLLHUP | select.POLLERR | select.POLLNVAL
_READING = 1e-6
"""Seconds that a look at the clock takes, so that no two moments are the same."""


class Process:
    """Threads that are stopped and killed together. A process that ends takes its children along,
    as PR_SET_PDEATHSIG has it, and the kernel closes what it had open."""

    def __init__(self, machine: Machine, name: str, pid: int, parent: Process | None) -> None:
        self.name = name
        self.pid = pid
        self.machine = machine
        self.children: list[Process] = []
        self.threads: list[SimThread] = []
        self._sockets: list[ref[Any]] = []
        self.descriptors: set[int] = set()
        self.exit_code: int | None = None
        self.alive = True
        self.stopped = False
        self.works = False
        """It uses its processor."""
        self.missing_descriptors = 0
        """So many times more a descriptor is refused: EMFILE."""
        self.lacked = 0.0
        """When one was refused last."""
        self.ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if parent:
            parent.children.append(self)

    def own(self, sock: Any) -> None:
        self._sockets.append(ref(sock))

    @property
    def sockets(self) -> list[Any]:
        """Open ones, in the order of their making."""
        self._sockets = [
            r for r in self._sockets if (sock := r()) is not None and sock.fileno() >= 0
        ]
        return [sock for r in self._sockets if (sock := r()) is not None]

    def run(self, target: Callable[[], Any], name: str) -> SimThread:
        thread = SimThread(self, target, name)
        self.threads.append(thread)
        self.machine.threads.append(thread)
        return thread

    def end(self, exit_code: int = -SIGKILL) -> None:
        if not self.alive:
            return
        self.alive, self.exit_code = False, exit_code
        for child in self.children:
            child.end()
        for sock in self.sockets:
            sock.close()
        for descriptor in sorted(self.descriptors):
            os.close(descriptor)
        self.descriptors.clear()
        os.eventfd_write(self.ended, 1)
        self.machine.ended.append(self)
        self.machine.on_end(self)
        if self.machine.process is self:
            raise GreenletExit


@dataclass(eq=False)
class SimThread:
    process: Process
    target: Callable[[], Any]
    name: str
    until: Callable[[], bool] | None = None
    descriptors: Mapping[int, int] = field(default_factory=dict)
    deadline: float = 0.0
    timed_out: bool = False
    done: bool = False

    def __post_init__(self) -> None:
        self.greenlet = greenlet(self._run, self.process.machine.hub)

    def _run(self) -> None:
        try:
            self.target()
        except GreenletExit:
            pass
        except Exception as error:  # A real one would end, and nobody would hear of it.
            if self.process.alive:
                self.process.machine.crashes.append((self, error))
        finally:
            self.done = True


class Machine:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.threads: list[SimThread] = []
        self.processes: dict[int, Process] = {}
        self.crashes: list[tuple[SimThread, Exception]] = []
        self.on_end: Callable[[Process], None] = lambda process: None
        self.plans: list[tuple[int, Callable[[], None]]] = []
        """What happens after so many changes of thread from the beginning."""
        self.ended: list[Process] = []
        self._buried = 0
        self.switches = 0
        self.wobbles = 0.2
        """How often a thread gives way where it need not."""
        self.hub = getcurrent()
        self._running: SimThread | None = None
        self._pids = count(10_000_000)  # No real process has one.

    def spawn(self, name: str, parent: Process | None = None) -> Process:
        process = Process(self, name, next(self._pids), parent)
        self.processes[process.pid] = process
        return process

    @property
    def process(self) -> Process | None:
        return self._running.process if self._running else None

    def clock(self) -> float:
        self.now += _READING
        return self.now

    # -- for the threads -------------------------------------------------------------------------

    def park(
        self,
        timeout: float | None = None,
        until: Callable[[], bool] | None = None,
        descriptors: Mapping[int, int] | None = None,
    ) -> bool:
        """Waits for any of these; False if it was the time."""
        thread = self._running
        if thread is None:
            raise RuntimeError("the test itself would have to wait")
        if not thread.process.alive:
            raise GreenletExit
        thread.until, thread.descriptors = until, descriptors or {}
        thread.deadline = inf if timeout is None else self.now + max(0.0, timeout)
        self.hub.switch()
        if not thread.process.alive:
            raise GreenletExit
        return not thread.timed_out

    def wobble(self) -> None:
        """A point at which another thread may be next."""
        if self._running and self.random.random() < self.wobbles:
            self.park(until=lambda: True)

    # -- for the test ----------------------------------------------------------------------------

    def run(self, done: Callable[[], bool], seconds: float) -> bool:
        """Lets the threads run until `done()`, or for so long; whether it is done."""
        end = self.now + seconds
        while not done():
            self._fulfil()
            self._bury()
            ready = self._ready()
            if self.now > end:
                return False
            if ready:
                self._switch(self.random.choice(ready))
                continue
            due = min((t.deadline for t in self._runnable()), default=inf)
            self.now = max(self.now, min(due, end + _READING))
        return True

    def plan(self, switches: int, action: Callable[[], None]) -> None:
        self.plans.append((self.switches + switches, action))

    def close(self) -> None:
        for process in list(self.processes.values()):
            process.end()
        self._bury()
        for process in self.processes.values():
            os.close(process.ended)

    # -- inside ----------------------------------------------------------------------------------

    def _runnable(self) -> list[SimThread]:
        return [t for t in self.threads if not t.process.stopped and t.process.alive]

    def _ready(self) -> list[SimThread]:
        ready: list[SimThread] = []
        waiting: list[SimThread] = []
        wanted: dict[int, int] = {}
        for thread in self._runnable():
            thread.timed_out = False
            if thread.until and thread.until():
                ready.append(thread)
            elif thread.descriptors:
                waiting.append(thread)
                for descriptor, events in thread.descriptors.items():
                    wanted[descriptor] = wanted.get(descriptor, 0) | events
            elif thread.deadline <= self.now:
                thread.timed_out = True
                ready.append(thread)
        said = _poll(wanted) if waiting else {}
        for thread in waiting:
            if any(said.get(d, 0) & (e | _ALWAYS) for d, e in thread.descriptors.items()):
                ready.append(thread)
            elif thread.deadline <= self.now:
                thread.timed_out = True
                ready.append(thread)
        return ready

    def _switch(self, thread: SimThread) -> None:
        self.switches += 1
        self._running = thread
        try:
            thread.greenlet.switch()
        finally:
            self._running = None
        if thread.done:
            self._forget(thread)

    def _fulfil(self) -> None:
        if not self.plans:
            return
        due = [action for at, action in self.plans if at <= self.switches]
        self.plans = [(at, action) for at, action in self.plans if at > self.switches]
        for action in due:
            action()

    def _bury(self) -> None:
        """Unwinds the threads of processes that have ended."""
        if self._buried == len(self.ended):
            return
        self._buried = len(self.ended)
        for thread in [t for t in self.threads if not t.process.alive]:
            self._running = thread
            try:
                thread.greenlet.throw()
            finally:
                self._running = None
            self._forget(thread)

    def _forget(self, thread: SimThread) -> None:
        if thread in self.threads:
            self.threads.remove(thread)
            thread.process.threads.remove(thread)


def _poll(wanted: Mapping[int, int]) -> dict[int, int]:
    poll = select.poll()
    for descriptor, events in wanted.items():
        poll.register(descriptor, events)
    return dict(poll.poll(0))
