"""Which request is refused after a group's death."""

from __future__ import annotations

import pytest

from python_mp.batch import Request
from python_mp.front.blame import guilty
from python_mp.front.inbox import GroupEnded
from tests.harness import FutureAnswer

CRASH = GroupEnded("rank 0 exited with 1")
KILL = GroupEnded("rank 0 was killed by SIGKILL", killed=True)
RAISED = GroupEnded("rank 0 raised", raised="ValueError: no")


def request() -> Request:
    return Request({}, [1], (), FutureAnswer())


def test_nobody_is_refused_after_one_death_and_all_are_kept_apart() -> None:
    company = [request(), request()]
    assert guilty(company, CRASH) == []
    assert all(each.alone and each.suspicion > 0 for each in company)


@pytest.mark.parametrize(("end", "deaths"), [(CRASH, 2), (KILL, 4)])
def test_who_is_in_hand_again_and_again_is_refused(end: GroupEnded, deaths: int) -> None:
    company = [request(), request()]
    poison = company[0]
    guilty(company, end)
    verdicts = [guilty([poison], end) for _ in range(deaths - 1)]
    assert verdicts == [[]] * (deaths - 2) + [[poison]]
    assert guilty([company[1]], KILL) == []


def test_an_exception_names_the_request_that_was_alone() -> None:
    alone = request()
    assert guilty([alone], RAISED) == [alone]
    assert guilty([request(), request()], RAISED) == []


def test_a_death_while_idle_is_nobodys_fault() -> None:
    assert guilty([], CRASH) == []
