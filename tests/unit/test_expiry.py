"""Time-outs in the queue, whatever the thread that counts them meets."""

import threading

import numpy as np
import pytest

from python_mp.front.schedule.expiry import Expiry
from python_mp.machine import net as nets
from python_mp.machine.net import Net
from python_mp.model.errors import Cancelled, TimedOut
from python_mp.model.request import Request
from tests.support.replicas import FutureAnswer


def test_a_late_request_is_given_up_after_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets, "PAUSES", (0.001,))
    late = Request({"X": np.zeros(1)}, [1], (), FutureAnswer(), deadline=0.0)
    given_up = threading.Event()
    errors = [OSError(24, "too many open files"), RuntimeError("a bug")]

    def waiting_since(_: float) -> list[Request]:
        if errors:
            raise errors.pop()
        return [] if given_up.is_set() else [late]

    def give_up(request: Request, error: TimedOut | Cancelled) -> None:
        assert (request, type(error)) == (late, TimedOut)
        given_up.set()

    net = Net()
    expiry = Expiry(waiting_since, give_up, net)
    expiry.start()
    expiry.wake()  # once: the errors must not lose it
    assert given_up.wait(10)
    expiry.stop()
    assert net.said()["expiry"]["count"] == 2
