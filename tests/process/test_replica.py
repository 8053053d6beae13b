"""A replica of echo ranks: right answers, and what becomes of requests when ranks die."""

import gc
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from python_mp.model.errors import InvalidInput, RequestFailed, Unavailable
from python_mp.rank.engines.echo import EXIT, HANG, RAISE, REFUSE, SEGFAULT, SLEEP
from tests.support.configs import echo_config
from tests.support.descriptors import alone, opened
from tests.support.processes import alive, until
from tests.support.replicas import (
    LIMIT,
    NO_FAULT,
    Fault,
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
def two(tmp_path: Path) -> Iterator[Served]:
    with served(echo_config(tmp_path, tensor_parallel_size=2), tmp_path) as replica:
        yield replica


@pytest.mark.parametrize(
    ("tp", "pp", "attend"), [(1, 1, 0.002), (4, 1, 0.0), (1, 3, 0.0), (2, 2, 0.002)]
)
def test_many_at_once_each_get_their_own_answer(
    tmp_path: Path, tp: int, pp: int, attend: float
) -> None:
    config = echo_config(
        tmp_path, tensor_parallel_size=tp, pipeline_parallel_size=pp, max_batch_tokens=64
    )
    lengths = random.Random(tp * 10 + pp).choices(range(1, 30), k=200)
    wanted = [list(range(n, n + length)) for n, length in enumerate(lengths)]
    with served(config, tmp_path) as replica, ThreadPoolExecutor(8) as clients:
        replica.attend = attend
        futures = list(clients.map(lambda numbers: ask(replica, *numbers), wanted))
        assert values(futures) == wanted
        names = ("requests_total", "tokens_total", "restarts_total", "ranks_alive")
        assert counted(replica, *names) == [200, sum(lengths), 0, tp * pp]
        assert counted(replica, "batches_total")[0] < 200 or attend


@pytest.mark.parametrize("victim", [0, 3])
def test_a_killed_rank_loses_nothing(tmp_path: Path, victim: int) -> None:
    config = echo_config(tmp_path, tensor_parallel_size=2, pipeline_parallel_size=2)
    with served(config, tmp_path) as replica:
        before = pids(replica)
        # Rank 2 answers: while it sleeps too, the batch is in hand.
        faults = [(SLEEP, rank, 200) for rank in {victim, 2}]
        sleeping = replica.ask(**echo_input(1, 2, 3, faults=faults))
        waiting = [ask(replica, n, n) for n in range(20)]
        os.kill(before[victim], signal.SIGKILL)
        assert values([sleeping, *waiting]) == [[1, 2, 3], *([n, n] for n in range(20))]
        assert counted(replica, "generation", "restarts_total", "ranks_alive") == [2, 1, 4]
        assert counted(replica, "replays_total")[0] >= 1
        assert not any(map(alive, before))


@pytest.mark.parametrize(
    ("fault", "wrong", "reason", "most_restarts"),
    [
        ((RAISE, 1, 42), RequestFailed, r"RuntimeError: raised as asked \(42\)", 2),
        ((EXIT, 0, 3), RequestFailed, "rank 0 exited with 3", 2),
        ((SEGFAULT, 0, 0), RequestFailed, "rank 0 was killed by SIGSEGV", 2),
        ((REFUSE, 0, 9), InvalidInput, r"refused as asked \(9\)", 0),
    ],
)
def test_a_poison_request_is_the_only_one_to_fail(
    two: Served, fault: Fault, wrong: type[Exception], reason: str, most_restarts: int
) -> None:
    before = pids(two)
    batch = [echo_input(n, faults=[fault if n == 5 else NO_FAULT]) for n in range(8)]
    futures = two.ask_all(batch)
    with pytest.raises(wrong, match=reason):
        futures.pop(5).result(LIMIT)
    assert values(futures) == [[n] for n in range(8) if n != 5]
    (restarts,) = counted(two, "restarts_total")
    assert restarts <= most_restarts
    assert restarts or pids(two) == before


def test_stop_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    alone(start_and_stop, tmp_path)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def start_and_stop(folder: str) -> None:
    """Without the help of the garbage collector, and at once; so two replicas that have talked."""
    before = opened()
    gc.disable()
    config = echo_config(Path(folder), replicas=2, tensor_parallel_size=2)
    with served(config, Path(folder)) as first, served(config, Path(folder), index=1) as second:
        processes, counts = pids(first) + pids(second), []
        for generation in (2, 3, 4):  # Each is freed at once, its memory files too.
            held = [ask(first, 1, fault=(SLEEP, 0, 100)), ask(first, 2)]
            os.kill(pids(first)[1], signal.SIGKILL)
            assert values(held) == [[1], [2]]
            until(lambda want=generation: counted(first, "generation", "ranks_alive") == [want, 2])
            processes += pids(first)
            assert values([ask(first, 1), ask(second, 1)]) == [[1], [1]]
            del held
            counts.append(opened())
        for pid in [os.getpid(), *pids(first), *pids(second)]:  # All memory is without a name.
            assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()
    assert counts == counts[:1] * 3
    assert not any(map(alive, processes))
    assert opened() == before


def test_a_rank_killed_during_stop_answers_nobody_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stop_now(record: logging.LogRecord) -> bool:
        """Called in the replica's thread, when it says what became of the rank."""
        if "was killed" in record.getMessage():
            stopper.start()
            stopper.join(0.1)  # it cannot end before this thread does, only get on its way
        return True

    with served(echo_config(tmp_path), tmp_path) as replica:
        stopper = threading.Thread(target=replica.replica.stop)
        futures = [ask(replica, 1, fault=(SLEEP, 0, 500)), ask(replica, 2)]
        caplog.handler.addFilter(stop_now)
        os.kill(pids(replica)[0], signal.SIGKILL)
        for future in futures:
            assert isinstance(future.exception(LIMIT), Unavailable)
        stopper.join()
    caplog.handler.removeFilter(stop_now)
    assert "could not be sent" not in caplog.text


@pytest.mark.parametrize("fault", [SLEEP, REFUSE, RAISE])
def test_an_answer_that_cannot_be_sent_hurts_nobody_else(tmp_path: Path, fault: int) -> None:
    with served(echo_config(tmp_path), tmp_path) as replica:
        gone = replica.ask(**echo_input(1, faults=[(SLEEP, 0, 100), (fault, 0, 0)]))
        assert gone.cancel()  # to answer it now raises
        assert replica.ask(**echo_input(2)).result(5.0)["Y"].tolist() == [[2]]


def test_hung_ranks_do_not_outlive_stop(tmp_path: Path) -> None:
    with served(echo_config(tmp_path, tensor_parallel_size=2), tmp_path) as replica:
        processes = pids(replica)
        replica.ask(**echo_input(1, faults=[(HANG, 0, 0), (HANG, 1, 0)]))
        stopped = time.monotonic()
    assert not any(map(alive, processes))
    assert time.monotonic() - stopped < 8
