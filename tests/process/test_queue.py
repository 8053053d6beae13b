"""What waits and need not any more, and what is refused at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

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


def refused(replica: Served, reason: str) -> float:
    return replica.metrics()[f"python_mp_refused_total{{reason={reason}}}"]


def test_a_cancelled_request_leaves_the_queue_uncomputed(tmp_path: Path) -> None:
    with served(echo_config(tmp_path, max_batch_tokens=1), tmp_path) as replica:
        busy = ask(replica, 0, fault=(SLEEP, 0, 3000))
        answers = [FutureAnswer() for _ in range(10)]
        requests = [
            read_request(echo_input(n), replica.config, each) for n, each in enumerate(answers)
        ]
        replica.replica.submit(requests)
        for answer in answers[::2]:
            answer.cancelled = True
        for answer in answers[::2]:
            assert isinstance(answer.future.exception(LIMIT), Cancelled)
        assert not busy.done(), "only when the ranks were free again"
        assert values([busy, *(a.future for a in answers[1::2])]) == [[0], [1], [3], [5], [7], [9]]
        assert counted(replica, "requests_total") == [6]
        assert refused(replica, "cancelled") == 5


def test_a_cancelled_request_in_hand_is_not_replayed(tmp_path: Path) -> None:
    with served(echo_config(tmp_path), tmp_path) as replica:
        answer = FutureAnswer()
        inputs = echo_input(1, faults=[(SLEEP, 0, 5000)])
        replica.replica.submit([read_request(inputs, replica.config, answer)])
        answer.cancelled = True
        os.kill(pids(replica)[0], signal.SIGKILL)
        assert isinstance(answer.future.exception(5), Cancelled)
        assert values([ask(replica, 2)]) == [[2]]
        assert counted(replica, "replays_total") == [0]


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_request_is_not_computed_after_its_deadline(tmp_path: Path, seconds: float) -> None:
    with served(echo_config(tmp_path, max_batch_tokens=1), tmp_path) as replica:
        busy = ask(replica, 0, fault=(SLEEP, 0, 3000))
        answer = FutureAnswer()
        late = read_request(echo_input(1), replica.config, answer)
        late.deadline = late.arrived + seconds
        replica.replica.submit([late])
        assert isinstance(answer.future.exception(LIMIT), TimedOut)
        assert time.monotonic() >= late.deadline
        assert not busy.done(), "only when the ranks were free again"
        assert values([busy]) == [[0]]
        assert counted(replica, "requests_total") == [1]


@pytest.mark.parametrize("fault", [EXIT, RAISE])
def test_what_waits_and_is_the_same_is_refused_with_it(tmp_path: Path, fault: int) -> None:
    with served(echo_config(tmp_path, max_batch_tokens=1), tmp_path) as replica:
        busy = ask(replica, 0, fault=(SLEEP, 0, 200))
        same = [ask(replica, 1, fault=(fault, 0, 7)) for _ in range(10)]
        other = ask(replica, 2)
        assert values([busy, other]) == [[0], [2]]
        for each in same:
            with pytest.raises(RequestFailed):
                each.result(10)
        assert counted(replica, "restarts_total") == [2]
        assert refused(replica, "poison") == 10
        with pytest.raises(RequestFailed, match="has ended two groups"):
            ask(replica, 1, fault=(fault, 0, 7)).result(LIMIT)
        assert counted(replica, "restarts_total") == [2], "it is remembered"
