"""What the watcher does in each state, with a server that only says what it would do."""

import itertools
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from python_mp.machine.backoff import DELAYS, SERVED, Backoff
from server.endpoints import Endpoints
from server.errors import ServerError
from server.watch import stop_signals, watcher
from server.watch.watcher import Watcher
from tests.support.watched import FakeServer, dies, nothing, told


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short pauses; and signal handlers are put back."""
    monkeypatch.setattr(watcher, "TICK", 0.001)
    monkeypatch.setattr(watcher, "CALM", 0.001)
    monkeypatch.setattr(stop_signals, "SAME_SIGNAL", 0.05)
    before = {number: signal.getsignal(number) for number in stop_signals.STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def watch(server: Any, **settings: Any) -> list[str]:
    said: list[str] = []
    Watcher(server, said.append, **settings).run()
    return said


def test_one_signal_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same wish, twice within a moment, is one."""
    monkeypatch.setattr(stop_signals, "SAME_SIGNAL", 60.0)
    server = FakeServer(told(signal.SIGTERM), told(signal.SIGTERM))
    assert watch(server)[-1] == "drained"
    assert server.stops == [False]


def test_second_signal_kills() -> None:
    def later(server: FakeServer) -> None:
        if server.stops:
            time.sleep(0.1)
            signal.raise_signal(signal.SIGINT)

    server = FakeServer(told(signal.SIGINT), *[later] * 5, code=-9)
    with pytest.raises(ServerError, match="ended with requests in flight"):
        watch(server)
    assert server.stops[:2] == [False, True]


def test_unfinished_drain_is_an_error() -> None:
    with pytest.raises(ServerError, match="the 30 s of --exit-timeout-secs"):
        watch(FakeServer(told(signal.SIGTERM), code=1))


def test_it_is_started_until_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("python_mp.machine.backoff.DELAYS", (0.0, 0.01, 0.02))
    server = FakeServer(dies(1), nothing, told(signal.SIGTERM), refuses=5)
    said = watch(server)
    assert server.starts == 7
    assert server.is_tolerant, "a model that does not load any more must not take the others along"
    assert any(line.startswith("ready again") for line in said)
    assert said.count("no port; it is tried again until it can be started") == 1


def test_a_signal_between_two_tries_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("python_mp.machine.backoff.DELAYS", (60.0,))
    server = FakeServer(dies(-9))
    wait = server.wait

    def cleans_up() -> int:
        signal.raise_signal(signal.SIGTERM)
        return wait()

    server.wait = cleans_up  # type: ignore[method-assign]
    began = time.monotonic()
    watch(server)
    assert time.monotonic() - began < 5
    assert server.starts == 1


def test_dead_for_long_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("python_mp.machine.backoff.DELAYS", (0.0, 0.01))
    monkeypatch.setattr("server.pages.report.DEAD_SECONDS", 1.5)
    server = FakeServer(dies(1), refuses=10_000)
    codes: list[int] = []
    start = server.start

    def look_and_start() -> None:
        if server.starts > 1:
            codes.append(live(server.endpoints))
            if codes[-1] == 503:
                signal.raise_signal(signal.SIGTERM)
        start()

    server.start = look_and_start  # type: ignore[method-assign]
    watch(server)
    assert codes[0] == 200
    assert codes[-1] == 503


def test_backoff() -> None:
    backoff = Backoff()
    times = list(itertools.accumulate(range(8), lambda now, _: backoff.failed(now), initial=100.0))
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert waits == [*DELAYS, *DELAYS[-1:] * (8 - len(DELAYS))]
    later = times[-1] + SERVED + 1
    assert backoff.failed(later) == later + DELAYS[0]


def live(endpoints: Endpoints) -> int:
    try:
        with urllib.request.urlopen(f"{endpoints.health_url}/live", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
