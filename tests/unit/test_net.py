"""The net round a loop."""

import logging
import threading
import time
import weakref

import pytest

from python_mp.machine import net as nets
from python_mp.machine.net import Loop, Net


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets, "PAUSES", (0.001,))


def looped(net: Net, *outcomes: Exception | None) -> list[Exception | None]:
    """What a loop has done that meets these, one a turn."""
    stopping, left, met = threading.Event(), list(outcomes), []

    def turn() -> None:
        met.append(outcome := left.pop(0))
        if not left:
            stopping.set()
        if outcome is not None:
            raise outcome

    thread = threading.Thread(target=net.loop, args=["supervisor", turn, stopping])
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return met


def test_a_loop_goes_on_whatever_it_meets(caplog: pytest.LogCaptureFixture) -> None:
    assert Net().said() == {}
    counted: list[str] = []

    def count(thread: str) -> None:
        counted.append(thread)
        raise MemoryError  # to book it

    net = Net(count)
    assert (
        len(looped(net, OSError(28, "full"), OSError(28, "full"), None, MemoryError(), None)) == 5
    )
    assert counted == ["supervisor"] * 3
    assert net.said()["supervisor"].items() >= {"count": 3, "text": "MemoryError"}.items()
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2, "each kind once"
    assert "Traceback" in caplog.text


def test_a_log_that_cannot_be_written_is_no_reason_to_end() -> None:
    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError(28, "no space left on device")

    logging.getLogger(nets.__name__).addHandler(handler := Full())
    try:
        assert not Net().hold("peers", lambda: 1 / 0)
    finally:
        logging.getLogger(nets.__name__).removeHandler(handler)


def test_an_error_keeps_nothing_alive() -> None:
    class Arena:
        pass

    arenas: list[weakref.ref[Arena]] = []

    def body() -> None:
        arena = Arena()
        arenas.append(weakref.ref(arena))
        raise ValueError

    logging.disable()  # pytest's own handler keeps records, and so the frames
    try:
        Net().hold("supervisor", body)
    finally:
        logging.disable(logging.NOTSET)
    assert arenas[0]() is None


def run_all(loop: Loop, *outcomes: Exception | None) -> None:
    left = iter(outcomes)

    def body() -> None:
        if (outcome := next(left)) is not None:
            raise outcome

    for _ in outcomes:
        time.sleep(loop.pause)
        loop.run(body)


def test_an_error_is_said_once_and_anew_once_it_had_gone() -> None:
    """Also where the lines cannot be written."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line.splitlines()[0])
        raise OSError(28, "No space left on device")

    loop = Net(say=say)["work"]
    run_all(loop, *[ValueError("odd")] * 5, *[KeyError("x")] * 2)
    assert (loop.errors, loop.error) == (7, "KeyError: 'x'")
    run_all(loop, None, None, KeyError("x"))
    assert (loop.errors, loop.error) == (8, "KeyError: 'x'")
    assert said == [
        "error: work: ValueError: odd; it is tried again",
        "error: work: KeyError: 'x'; it is tried again",
        "work: works again",
        "error: work: KeyError: 'x'; it is tried again",
    ]


def test_a_run_within_the_pause_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets, "PAUSES", (10.0, 20.0))
    now = [0.0]
    monkeypatch.setattr(nets.time, "monotonic", lambda: now[0])
    runs: list[float] = []
    loop = Net()["work"]
    for now[0] in range(100):
        loop.run(lambda: runs.append(now[0]) or 1 / 0)  # type: ignore[func-returns-value]
    assert runs == [0, 10, 30, 50, 70, 90]
    assert loop.pause == 90 + 20 - 99
