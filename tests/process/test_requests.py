"""What waits and need not any more, what is refused, and what fails on its way."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from python_mp.front.group import Group
from python_mp.front.open_requests import OpenRequests
from python_mp.model.errors import Cancelled, RequestFailed, TimedOut
from python_mp.model.request import read_request
from python_mp.rank.engines.echo import EXIT, RAISE, SLEEP
from tests.support.configs import echo_config
from tests.support.replicas import (
    LIMIT,
    FutureAnswer,
    Served,
    ask,
    counted,
    echo_input,
    pids,
    served,
    values,
)

pytestmark = pytest.mark.usefixtures("one_forkserver")


@pytest.fixture
def one_by_one(tmp_path: Path) -> Iterator[Served]:
    """Each request is a batch of its own."""
    with served(echo_config(tmp_path, max_batch_tokens=1), tmp_path) as replica:
        yield replica


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Served]:
    with served(echo_config(tmp_path), tmp_path) as replica:
        yield replica


def test_a_cancelled_request_leaves_the_queue_uncomputed(one_by_one: Served) -> None:
    busy = ask(one_by_one, 0, fault=(SLEEP, 0, 3000))
    answers = [FutureAnswer() for _ in range(10)]
    config = one_by_one.config
    requests = [read_request(echo_input(n), config, each) for n, each in enumerate(answers)]
    one_by_one.replica.submit(requests)
    for answer in answers[::2]:
        answer.cancelled = True
    for answer in answers[::2]:
        assert isinstance(answer.future.exception(LIMIT), Cancelled)
    assert not busy.done(), "only when the ranks were free again"
    assert values([busy, *(a.future for a in answers[1::2])]) == [[0], [1], [3], [5], [7], [9]]
    assert counted(one_by_one, "requests_total", "refused_total{reason=cancelled}") == [6, 5]


def test_a_cancelled_request_in_hand_is_not_replayed(one: Served) -> None:
    answer, inputs = FutureAnswer(), echo_input(1, faults=[(SLEEP, 0, 5000)])
    one.replica.submit([read_request(inputs, one.config, answer)])
    answer.cancelled = True
    os.kill(pids(one)[0], signal.SIGKILL)
    assert isinstance(answer.future.exception(LIMIT), Cancelled)
    assert values([ask(one, 2)]) == [[2]]
    assert counted(one, "replays_total") == [0]


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_request_is_not_computed_after_its_deadline(one_by_one: Served, seconds: float) -> None:
    busy = ask(one_by_one, 0, fault=(SLEEP, 0, 3000))
    answer = FutureAnswer()
    late = read_request(echo_input(1), one_by_one.config, answer)
    late.deadline = late.arrived + seconds
    one_by_one.replica.submit([late])
    assert isinstance(answer.future.exception(LIMIT), TimedOut)
    assert time.perf_counter() >= late.deadline
    assert not busy.done(), "only when the ranks were free again"
    assert values([busy]) == [[0]]
    assert counted(one_by_one, "requests_total") == [1]


@pytest.mark.parametrize("fault", [EXIT, RAISE])
def test_what_waits_and_is_the_same_is_refused_with_it(one_by_one: Served, fault: int) -> None:
    busy = ask(one_by_one, 0, fault=(SLEEP, 0, 200))
    same = [ask(one_by_one, 1, fault=(fault, 0, 7)) for _ in range(10)]
    other = ask(one_by_one, 2)
    assert values([busy, other]) == [[0], [2]]
    for each in same:
        with pytest.raises(RequestFailed):
            each.result(LIMIT)
    assert counted(one_by_one, "restarts_total", "refused_total{reason=poison}") == [2, 10]
    with pytest.raises(RequestFailed, match="has ended two groups"):
        ask(one_by_one, 1, fault=(fault, 0, 7)).result(LIMIT)
    assert counted(one_by_one, "restarts_total") == [2], "it is remembered"


# -- inside the front ----------------------------------------------------------------------------


# What raises, and what its clients are told.
@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (OpenRequests, "prepare", "the request could not be queued"),
        (Group, "forward", "the request could not be computed"),
    ],
)
def test_an_exception_on_the_way_to_the_ranks_leaves_nothing_half_done(
    one: Served, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, said: str
) -> None:
    def fails(*_: Any) -> Any:
        raise MemoryError("for the third time today")

    for number in range(4):
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, fails)
            with pytest.raises(RequestFailed, match=said):
                ask(one, number).result(LIMIT)
        assert values([ask(one, number)]) == [[number]]
    assert counted(one, "restarts_total", "queue_requests") == [0, 0]
