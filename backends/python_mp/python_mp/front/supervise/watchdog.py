"""Notices a group that does not get on, by what its processes do and not by the clock alone.

A rank that computes uses its processor, however long it takes: that is progress. Ranks that wait
for a peer sleep. So a group with a batch in hand whose ranks all sleep is stuck: one of them has
left the others alone in a collective, or waits for something that never comes. A process stopped by
a signal is stuck at any time, also while the group starts or has nothing to do, and so is the
forkserver.

What keeps its processor busy for nothing cannot be told from honest work; `forward_timeout_seconds`
is for who knows how long a batch may take.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress

from ...machine.vital import Vital, vital
from ...model.config import Parameters
from ..group import Group, State
from ..inbox import GroupEnded

_FORKSERVER = "the process that starts ranks"
_BUSY = 0.02
"""Of one processor, of any rank. Waiting for a peer takes 0.002 (it looks up every 10 ms),
computing on a machine with 20 times too much to do 0.05."""
_MOST_SECONDS, _LEAST_SECONDS = 1.0, 0.02
"""Between two looks."""
_OFTEN = 4
"""Times as many looks while there is a batch in hand: what is seen late is waited for longer."""
_DISAGREE_SECONDS = 2.0
"""Ranks refuse a batch within milliseconds of each other."""
_PATIENCE = 6
"""Times `hang_seconds` for a rank in the kernel, state D: a slow disk may have much to read, but
one that has gone away answers never. And for one that would run, state R, and is given no processor
by a machine with far too much to do."""


class Watchdog:
    """Watches one generation and the forkserver that it comes from; `look` must be called after
    `interval` seconds, or sooner."""

    def __init__(self, group: Group, parameters: Parameters, forkserver: int) -> None:
        self._group = group
        self._forkserver = forkserver
        self._hang = parameters.hang_seconds or math.inf
        self._limit = parameters.forward_timeout_seconds or math.inf
        self._most = min(_MOST_SECONDS, self._hang / 5, self._limit / 5)
        self._next_look = 0.0
        self._due = math.inf
        """When a verdict may come, if nothing changes until then."""
        self._batch = -1
        self._since = time.monotonic()
        self._cpu_seconds: dict[str, float] = {}
        self._running_since: dict[str, float] = {}

    @property
    def interval(self) -> float:
        """Until the next look: sooner than usual where it may be the last one."""
        most = self._most / (_OFTEN if self._group.flights.oldest else 1)
        return max(_LEAST_SECONDS, min(most, self._due - time.monotonic()))

    def look(self) -> None:
        """Raises GroupEnded, with every rank's stacks in the log, when the group is stuck."""
        now = time.monotonic()
        if now < min(self._next_look, self._due):
            return
        self._next_look, self._due = now + self._most / _OFTEN, math.inf
        try:
            vitals = {f"rank {rank.rank}": rank.vital() for rank in self._group.ranks}
            vitals[_FORKSERVER] = vital(self._forkserver)
        except OSError:  # Who cannot look must not judge.
            self._since = now
            return
        for name, process in vitals.items():
            if process.state not in "Tt":
                self._running_since[name] = now
            elif self._is_over(self._running_since.setdefault(name, now) + self._hang, now):
                raise self._stuck(f"{name} has been stopped for {self._hang} s", killed=True)
        if self._group.state is State.SERVING:
            del vitals[_FORKSERVER]
            self._look_at_work(now, vitals)

    def _look_at_work(self, now: float, vitals: Mapping[str, Vital]) -> None:
        flight = self._group.flights.oldest
        batch = flight.batch.id if flight else -1
        least = _BUSY * (1 + now - self._since)
        worked = any(
            each.cpu_seconds - self._cpu_seconds.get(name, 0.0) > least
            for name, each in vitals.items()
        )
        may_get_on = any(each.state in "DR" for each in vitals.values())
        if batch < 0 or batch != self._batch or worked:
            self._batch, self._since = batch, now
            self._cpu_seconds = {name: each.cpu_seconds for name, each in vitals.items()}
        elif flight and flight.refused_by and now - self._since >= _DISAGREE_SECONDS:
            raise self._stuck(f"ranks {sorted(flight.refused_by)} refused what others wait for")
        elif self._is_over(self._since + self._hang * (_PATIENCE if may_get_on else 1), now):
            seconds = now - self._since
            raise self._stuck(f"no rank has got on for {seconds:.0f} s")
        if flight and time.perf_counter() - flight.dispatched >= self._limit:
            raise self._stuck(f"a batch has taken more than {self._limit} s")

    def _is_over(self, moment: float, now: float) -> bool:
        self._due = min(self._due, moment)
        return now >= moment

    def _stuck(self, reason: str, *, killed: bool = False) -> GroupEnded:
        with suppress(OSError):
            self._group.ask_for_stacks()
        return GroupEnded(reason, killed=killed, hung=True)
