"""What waits and need not any more, and what is refused at once."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from python_mp.batch import read_request
from python_mp.errors import Cancelled, RequestFailed, TimedOut, Unavailable
from python_mp.front.sweeper import PERIOD_SECONDS
from python_mp.rank.engines.echo import EXIT, RAISE, SLEEP
from tests.support.harness import (
    FutureAnswer,
    ask,
    children,
    counted,
    echo_config,
    echo_input,
    pids,
    served,
    until,
    values,
)


def refused(replica, reason: str) -> float:
    return replica.metrics()[f"python_mp_refused_total{{reason={reason}}}"]


def test_a_cancelled_request_leaves_the_queue_uncomputed(tmp_path: Path) -> None:
    with served(echo_config(tmp_path, max_batch_tokens=1), tmp_path) as replica:
        busy = ask(replica, 0, fault=(SLEEP, 0, 600))
        answers = [FutureAnswer() for _ in range(10)]
        requests = [
            read_request(echo_input(n), replica.config, each) for n, each in enumerate(answers)
        ]
        replica.replica.submit(requests)
        for answer in answers[::2]:
            answer.cancelled = True
        began = time.monotonic()
        for answer in answers[::2]:
            assert isinstance(answer.future.exception(5), Cancelled)
        assert time.monotonic() - began < 0.4, "while the ranks were still busy"
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


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_a_request_is_not_computed_after_its_deadline(tmp_path: Path, seconds: float) -> None:
    with served(echo_config(tmp_path, max_batch_tokens=1), tmp_path) as replica:
        busy = ask(replica, 0, fault=(SLEEP, 0, 800))
        answer = FutureAnswer()
        late = read_request(echo_input(1), replica.config, answer)
        late.deadline = late.arrived + seconds
        replica.replica.submit([late])
        began = time.monotonic()
        assert isinstance(answer.future.exception(5), TimedOut)
        assert time.monotonic() - began < seconds + 10 * PERIOD_SECONDS
        assert values([busy]) == [[0]]
        assert counted(replica, "requests_total") == [1]


def test_poison_is_remembered(tmp_path: Path) -> None:
    with served(echo_config(tmp_path), tmp_path) as replica:
        for _ in range(3):
            with pytest.raises(RequestFailed):
                ask(replica, 1, fault=(EXIT, 0, 7)).result(10)
        assert values([ask(replica, 1)]) == [[1]]
        assert counted(replica, "restarts_total") == [2]
        assert refused(replica, "condemned") == 3


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
        assert refused(replica, "condemned") == 10


def test_a_group_that_cannot_start_refuses_at_once_and_comes_back(tmp_path: Path) -> None:
    cause = tmp_path / "cause"
    config = echo_config(tmp_path, tensor_parallel_size=2, **{"module.die_if": str(cause)})
    with served(config, tmp_path) as replica:
        (status,) = (tmp_path / "status").iterdir()
        assert json.loads(status.read_text())["state"] == "serving"
        cause.touch()
        os.kill(pids(replica)[0], signal.SIGKILL)
        until(lambda: json.loads(status.read_text())["state"] == "down")
        nursery = next(filter(is_nursery, children(os.getpid())))
        began, before = time.monotonic(), cpu_seconds(nursery)
        with pytest.raises(Unavailable, match=r"rank . exited with 1"):
            ask(replica, 1).result(1.0)
        time.sleep(3)
        # Its back-off is still short here; a busy loop would take all of a processor.
        assert cpu_seconds(nursery) - before < 0.1 * (time.monotonic() - began)
        assert not replica.replica.serves
        cause.unlink()
        until(lambda: json.loads(status.read_text())["state"] == "serving")
        assert values([ask(replica, 2)]) == [[2]]
    assert not status.exists()


def is_nursery(pid: int) -> bool:
    return b"rank.nursery" in Path(f"/proc/{pid}/cmdline").read_bytes()


def cpu_seconds(pid: int) -> float:
    """Of a process and the children that it has reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
