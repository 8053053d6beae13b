"""Two replicas: what waits at one that is down is computed by the other."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from python_mp.model.errors import InvalidInput, RequestFailed, Unavailable
from python_mp.rank.engines.echo import EXIT, RAISE, REFUSE, SLEEP
from tests.support.configs import echo_config
from tests.support.processes import until
from tests.support.replicas import LIMIT, Served, ask, counted, pids, served, values

pytestmark = pytest.mark.usefixtures("one_forkserver")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Served, Served]]:
    """Two replicas that take long to start."""
    sizes = {"replicas": 2, "tensor_parallel_size": 2}
    config = echo_config(tmp_path, **sizes, **{"module.start_seconds": 3})
    with ExitStack() as stack, ThreadPoolExecutor(2) as starting:
        both = [served(config, tmp_path, index=index) for index in (0, 1)]
        started = list(starting.map(lambda each: each.__enter__(), both))
        for each in both:
            stack.push(each)
        yield started[0], started[1]


def test_what_a_killed_replica_had_is_answered_by_its_peer(pair: tuple[Served, Served]) -> None:
    first, second = pair
    held = [ask(first, 1, fault=(SLEEP, 0, 300)), *(ask(first, n) for n in range(2, 10))]
    os.kill(pids(first)[1], signal.SIGKILL)
    assert values(held) == [[n] for n in range(1, 10)]
    assert values([ask(first, 10)]) == [[10]]
    assert counted(first, "ranks_alive") == [0], "nobody waited for the new ranks"
    for fault in (REFUSE, RAISE):  # A guest is told what is wrong with it.
        with pytest.raises((RequestFailed, InvalidInput), match="as asked"):
            ask(first, 1, fault=(fault, 0, 0)).result(LIMIT)
    assert counted(first, "handed_over_total")[0] >= 9
    assert counted(second, "requests_total")[0] >= counted(first, "handed_over_total")[0]
    until(lambda: counted(first, "ranks_alive") == [2])
    assert values([ask(first, 11)]) == [[11]]
    assert counted(first, "requests_total")[0] >= 2, "it serves itself again"


def test_what_crashed_a_replica_does_not_go_to_its_peer(pair: tuple[Served, Served]) -> None:
    first, second = pair
    fault = (EXIT, 0, 1)
    poison, good = ask(first, 1, fault=fault), ask(first, 2)
    assert values([good]) == [[2]]
    with pytest.raises(RequestFailed):
        poison.result(LIMIT)
    assert not first.replica.serves
    for replica in (second, first, second):
        with pytest.raises(RequestFailed, match="has ended two groups"):
            ask(replica, 1, fault=fault).result(LIMIT)
    assert values([ask(first, 2), ask(second, 3)]) == [[2], [3]]
    assert counted(second, "generation", "restarts_total") == [1, 0]
    assert counted(first, "restarts_total") == [2]


def test_a_replica_that_cannot_start_is_helped_while_a_peer_serves(tmp_path: Path) -> None:
    cause = tmp_path / "cause"
    config = echo_config(tmp_path, replicas=2, **{"module.die_if": str(cause)})
    with served(config, tmp_path) as first, served(config, tmp_path, index=1) as second:
        cause.touch()
        os.kill(pids(first)[0], signal.SIGKILL)
        until(lambda: bool(first.replica._down))
        assert values([ask(first, n) for n in range(20)]) == [[n] for n in range(20)]
        os.kill(pids(second)[0], signal.SIGKILL)
        until(lambda: bool(second.replica._down) and not first.replica._away.is_hopeful)
        with pytest.raises(Unavailable, match="exited with 1"):
            ask(first, 1).result(LIMIT)
        cause.unlink()
        until(lambda: first.replica.serves)
        assert values([ask(first, 2)]) == [[2]]


def test_stop_answers_or_refuses_what_is_away(tmp_path: Path) -> None:
    config = echo_config(tmp_path, replicas=2, **{"module.start_seconds": 1})
    with served(config, tmp_path, index=1) as second:
        with served(config, tmp_path) as first:
            os.kill(pids(first)[0], signal.SIGKILL)
            until(lambda: not first.replica.serves)
            away = [ask(first, n, fault=(SLEEP, 0, 500)) for n in range(3)]
            until(lambda: counted(second, "batches_total")[0] > 0)
        for future in away:
            assert isinstance(future.exception(0), Unavailable | None)
        assert values([ask(second, 4)]) == [[4]]
