"""Which request is refused after a group's death."""

import time

import numpy as np
import pytest

from python_mp.front.inbox import GroupEnded
from python_mp.front.supervise.poison import REMEMBER_SECONDS, PoisonList, guilty
from python_mp.model.request import Request
from tests.support.replicas import FutureAnswer

CRASH = GroupEnded("rank 0 exited with 1")
KILL = GroupEnded("rank 0 was killed by SIGKILL", killed=True)
RAISED = GroupEnded("rank 0 raised", raised="ValueError: no")


def request() -> Request:
    return Request({}, [[1]], (), FutureAnswer())


@pytest.mark.parametrize(("end", "deaths"), [(CRASH, 2), (KILL, 4)])
def test_who_is_in_hand_again_and_again_is_refused(end: GroupEnded, deaths: int) -> None:
    company = [request(), request()]
    poison = company[0]
    assert guilty(company, end) == []
    assert all(each.alone and each.suspicion > 0 for each in company)
    verdicts = [guilty([poison], end) for _ in range(deaths - 1)]
    assert verdicts == [[]] * (deaths - 2) + [[poison]]
    assert guilty([company[1]], KILL) == []


def test_an_exception_names_the_request_that_was_alone() -> None:
    alone = request()
    assert guilty([alone], RAISED) == [alone]
    assert guilty([request(), request()], RAISED) == []


def test_the_poison_are_known_again_by_their_content(monkeypatch: pytest.MonkeyPatch) -> None:
    poison = PoisonList()
    assert with_x([1, 2]) not in poison
    poison.add(with_x([1, 2], deaths=2.0))
    assert with_x([1, 2]) in poison
    assert with_x([2, 1]) not in poison
    assert Request({"Y": with_x([1, 2]).inputs["X"]}, [[1]], (), FutureAnswer()) not in poison
    later = time.monotonic() + REMEMBER_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    monkeypatch.setattr(Request, "content", None)  # Nor is anything hashed any more.
    assert with_x([1, 2]) not in poison


def with_x(values: list[int], deaths: float = 0.0) -> Request:
    x = np.array(values, np.int32)
    return Request({"X": x}, [[1]], (), FutureAnswer(), suspicion=deaths)


def test_what_is_told_counts_as_known_however_often() -> None:
    here, there = PoisonList(), PoisonList()
    here.add(with_x([1], deaths=2.0))
    here.add(with_x([2], deaths=1.0))
    for _ in range(3):
        there.hear(here.tell())
        here.hear(there.tell())
    assert with_x([1]) in there
    assert with_x([2]) not in there
    there.add(with_x([2], deaths=1.0))
    assert with_x([2]) in there
    assert PoisonList().tell() == ""
