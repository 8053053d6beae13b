"""Notices a group that does not get on, by what its processes do and not by the clock alone.

A rank that computes uses its processor, however long it takes: that is progress. Ranks that wait
for a peer sleep. So a group with a batch in hand whose ranks all sleep is stuck: one of them has
left the others alone in a collective, or waits for something that never comes. A process stopped by
a signal is stuck at any time, also while the group starts or has nothing to do.

What keeps its processor busy for nothing cannot be told from honest work; `forward_timeout_seconds`
is for who knows how long a batch may take.
"""

from __future__ import annotations

import math
import time

from ..config import Parameters
from .group import Group, State
from .inbox import GroupEnded
from .process import vital

_BUSY = 0.02
"""Of one processor. Waiting for a peer takes 0.002 (it looks up every 10 ms), computing on a
machine with 20 times too much to do 0.05."""
_MOST_SECONDS = 1.0


class Watchdog:
    """Watches one generation; `look` must be called every `interval` seconds, or more often."""

    def __init__(self, group: Group, parameters: Parameters) -> None:
        self._group = group
        self._hang = parameters.hang_seconds or math.inf
        self._limit = parameters.forward_timeout_seconds or math.inf
        self.interval = min(_MOST_SECONDS, self._hang / 5, self._limit / 5)
        self._next_look = 0.0
        self._batch = -1
        self._since = time.monotonic()
        self._cpu_seconds = 0.0
        self._running_since: dict[int, float] = {}

    def look(self) -> None:
        """Raises GroupEnded, with every rank's stacks in the log, when the group is stuck."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self.interval / 2
        vitals = {rank.rank: vital(rank.pid) for rank in self._group.ranks}
        for rank, now_is in vitals.items():
            if now_is.state not in "Tt":
                self._running_since[rank] = now
            elif now - self._running_since.setdefault(rank, now) >= self._hang:
                raise self._stuck(f"rank {rank} has been stopped for {self._hang} s", killed=True)
        if self._group.state is not State.SERVING:
            return
        flight = self._group.oldest
        cpu_seconds = sum(each.cpu_seconds for each in vitals.values())
        in_kernel = any(each.state == "D" for each in vitals.values())
        batch = flight.batch.id if flight else -1
        worked = cpu_seconds - self._cpu_seconds > _BUSY * (1 + now - self._since)
        if batch < 0 or batch != self._batch or worked or in_kernel:
            self._batch, self._since, self._cpu_seconds = batch, now, cpu_seconds
        elif now - self._since >= self._hang:
            raise self._stuck(f"no rank has got on for {self._hang} s")
        if flight and time.perf_counter() - flight.dispatched >= self._limit:
            raise self._stuck(f"a batch has taken more than {self._limit} s")

    def _stuck(self, reason: str, *, killed: bool = False) -> GroupEnded:
        self._group.ask_for_stacks()
        return GroupEnded(reason, killed=killed, hung=True)
