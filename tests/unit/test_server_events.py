"""The watcher hears of processes that end, whomever they are the children of."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from server.watch.events import Events
from tests.support.descriptors import ours

SOON, LONG = 20.0, 60.0


@pytest.fixture
def events() -> Iterator[Events]:
    before = ours()
    made = Events()
    yield made
    made.close()
    assert made._epoll.closed
    assert ours() == before


def waits(events: Events, seconds: float = LONG) -> float:
    began = time.monotonic()
    events.wait(seconds)
    return time.monotonic() - began


@pytest.fixture
def process() -> Iterator[int]:
    """One that nobody here waits for, like tritonserver's stubs: a zombie at its end."""
    with subprocess.Popen(["sleep", "1000"]) as made:
        yield made.pid
        made.kill()


@pytest.mark.parametrize("has_pidfds", [True, False])
def test_an_end_is_heard_of(
    events: Events, process: int, has_pidfds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, where the kernel has pidfds and there are descriptors left, else when asked."""

    def fault(_: int) -> int:
        raise OSError(24, "Too many open files")

    if not has_pidfds:
        monkeypatch.setattr(os, "pidfd_open", fault)
    events.watch(process)
    assert waits(events, 0.1) >= 0.1
    assert not events.has_ended(process)
    os.kill(process, signal.SIGKILL)
    if has_pidfds:
        assert waits(events) < SOON
    deadline = time.monotonic() + SOON
    while not events.has_ended(process):
        assert time.monotonic() < deadline
    assert waits(events, 0.1) >= 0.1, "it is told once"


def test_threads_and_signals_wake_it(events: Events) -> None:
    threading.Timer(0.1, events.wake).start()
    assert waits(events) < SOON
    before = signal.signal(signal.SIGALRM, lambda *_: events.wake())
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    assert waits(events) < SOON
    signal.signal(signal.SIGALRM, before)
