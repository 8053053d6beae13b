"""The net round a thread's loop."""

from __future__ import annotations

import logging
import threading
import weakref

import pytest

from python_mp.machine import net as nets
from python_mp.machine.net import PAUSES, Net, pause


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


def test_pauses_grow_and_stay_short() -> None:
    waits = [pause(failures) for failures in range(1, 100)]
    assert waits == sorted(waits)
    assert max(PAUSES) <= 1.0, "it serves again soon after the cause's end"
