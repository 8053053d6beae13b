"""Ranks that are neither dead nor getting on, and ranks that are merely slow."""

import os
import signal
from pathlib import Path

import pytest

from python_mp.model.errors import RequestFailed
from python_mp.rank.engines.echo import HANG, WORK
from tests.support.configs import echo_config
from tests.support.processes import until
from tests.support.replicas import Served, ask, counted, pids, served, values

pytestmark = pytest.mark.usefixtures("one_forkserver")

HANG_SECONDS = 1
LIMIT = 4 * HANG_SECONDS + 2.0


@pytest.fixture
def two(tmp_path: Path):
    config = echo_config(tmp_path, tensor_parallel_size=2, hang_seconds=HANG_SECONDS)
    with served(config, tmp_path) as replica:
        yield replica


def test_a_hang_ends_the_group_with_its_stacks_in_the_log(
    two: Served, caplog: pytest.LogCaptureFixture
) -> None:
    hung = ask(two, 1, fault=(HANG, 1, 0))
    others = [ask(two, n) for n in range(20)]
    assert values(others) == [[n] for n in range(20)]
    with pytest.raises(RequestFailed, match="no rank has got on for 1 s"):
        hung.result(LIMIT)
    assert counted(two, "restarts_total", "hangs_total") == [2, 2]
    assert "rank 1, S:" in caplog.text, "its state"
    assert "in commit" in caplog.text, "where it hung"
    assert "rank 0, S:" in caplog.text, "and where the other waited"


def test_a_stopped_rank_is_replaced_while_nobody_asks(two: Served) -> None:
    os.kill(pids(two)[1], signal.SIGSTOP)
    until(lambda: counted(two, "generation", "ranks_alive") == [2, 2], LIMIT)


def test_a_rank_stopped_while_it_starts_is_replaced(tmp_path: Path) -> None:
    more = {"module.start_seconds": 0.5, "hang_seconds": HANG_SECONDS}
    with served(echo_config(tmp_path, **more), tmp_path) as replica:
        (first,) = pids(replica)
        os.kill(first, signal.SIGKILL)
        until(lambda: pids(replica) not in ([], [first]))
        os.kill(pids(replica)[0], signal.SIGSTOP)
        assert values([ask(replica, 5)]) == [[5]]
        assert counted(replica, "generation", "hangs_total") == [3, 1]


def test_a_limit_on_a_batch_ends_even_what_computes(tmp_path: Path) -> None:
    with served(echo_config(tmp_path, forward_timeout_seconds=1), tmp_path) as replica:
        endless = ask(replica, 3, fault=(WORK, 0, 60_000))
        with pytest.raises(RequestFailed, match="more than 1 s"):
            endless.result(LIMIT)
        assert values([ask(replica, 4)]) == [[4]]
