"""What the watchdog takes for a hang, on a clock of its own."""

import errno
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from python_mp.front.group import State
from python_mp.front.inbox import GroupEnded
from python_mp.front.supervise import watchdog as module
from python_mp.front.supervise.watchdog import Watchdog
from python_mp.machine.vital import Vital
from python_mp.model.config import Parameters

HANG, FORKSERVER = 10, 999
WAITING = 0.004
"""Seconds of a core that a rank takes each second while it waits for a peer, on a slow machine."""


class Machine:
    """A clock, and processes that use so much of a core while they are in these states."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, use: list[float], states: str) -> None:
        self.now = 1000.0
        self.use, self.states = use, states
        self.forkserver_state = "S"
        self.blind = False
        clocks = SimpleNamespace(monotonic=self.clock, perf_counter=self.clock)
        monkeypatch.setattr(module, "time", clocks)
        monkeypatch.setattr(module, "vital", self.vital)
        ranks = [
            SimpleNamespace(rank=number, vital=partial(self.vital, number))
            for number in range(len(use))
        ]
        flight = SimpleNamespace(
            batch=SimpleNamespace(id=1), dispatched=self.now, refused_by=set[int]()
        )
        self.group: Any = SimpleNamespace(
            ranks=ranks,
            flights=SimpleNamespace(oldest=flight),
            state=State.SERVING,
            ask_for_stacks=lambda: None,
        )

    def clock(self) -> float:
        return self.now

    def vital(self, pid: int) -> Vital:
        if self.blind:
            raise OSError(errno.EMFILE, "too many open files")
        if pid == FORKSERVER:
            return Vital(self.forkserver_state, 1.0)
        return Vital(self.states[pid], self.use[pid] * self.now)

    def fires_after(self, most: float = 200.0) -> float | None:
        """Seconds until it says that the group is stuck; None if it does not."""
        watchdog = Watchdog(self.group, Parameters("echo", hang_seconds=HANG), FORKSERVER)
        began = self.now
        with suppress(GroupEnded):
            while self.now < began + most:
                watchdog.look()
                self.now += watchdog.interval
            return None
        return self.now - began


@pytest.mark.parametrize("ranks", [1, 8])
def test_a_hang_is_noticed(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    machine = Machine(monkeypatch, [WAITING] * ranks, "S" * ranks)
    assert HANG <= (machine.fires_after() or 0) <= HANG + 0.3
    machine = Machine(monkeypatch, [*[WAITING] * (ranks - 1), 0.06], "S" * ranks)
    assert machine.fires_after() is None, "one rank that computes is enough"


def test_what_one_rank_refuses_the_others_do_not_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [WAITING] * 2, "SS")
    machine.group.flights.oldest.refused_by = {1}
    assert 2 <= (machine.fires_after() or 0) <= 5
    computing = Machine(monkeypatch, [0.5, WAITING], "RS")
    computing.group.flights.oldest.refused_by = {1}
    assert computing.fires_after() is None


@pytest.mark.parametrize("states", ["DS", "RS"])
def test_what_hangs_in_the_kernel_or_is_given_no_processor_may_get_on(
    monkeypatch: pytest.MonkeyPatch, states: str
) -> None:
    fired = Machine(monkeypatch, [0.0, WAITING], states).fires_after()
    assert 5 * HANG <= (fired or 0) <= 7 * HANG
    assert Machine(monkeypatch, [0.05, WAITING], states).fires_after() is None, "a busy disk"


@pytest.mark.parametrize(("states", "forkserver"), [("ST", "S"), ("St", "S"), ("SS", "T")])
def test_stopped_is_stuck(monkeypatch: pytest.MonkeyPatch, states: str, forkserver: str) -> None:
    machine = Machine(monkeypatch, [1.0, 1.0], states)
    machine.group.state, machine.group.flights.oldest = State.STARTING, None
    machine.forkserver_state = forkserver
    assert HANG <= (machine.fires_after() or 0) <= HANG + 3


def test_who_cannot_look_does_not_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [WAITING], "S")
    machine.blind = True
    assert machine.fires_after() is None
