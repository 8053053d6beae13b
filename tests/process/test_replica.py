"""A replica of echo ranks: right answers, and what becomes of requests when ranks die."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from python_mp.errors import InvalidInput, LoadError, RequestFailed, Unavailable
from python_mp.rank.engines.echo import EXIT, HANG, RAISE, REFUSE, SEGFAULT, SLEEP
from tests.support.descriptors import alone, opened
from tests.support.harness import (
    FP32,
    INT32,
    LIMIT,
    Array,
    Served,
    alive,
    ask,
    counted,
    echo_config,
    echo_input,
    model_config,
    pids,
    rank_processes,
    served,
    tensor,
    until,
    values,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Served]:
    """Two tensor-parallel ranks."""
    with served(echo_config(tmp_path, tensor_parallel_size=2), tmp_path) as replica:
        yield replica


@pytest.mark.parametrize("attend", [0.0, 0.002])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (1, 2), (1, 3), (2, 2), (2, 3)])
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
        assert len(pids(replica)) == tp * pp
        futures = list(clients.map(lambda numbers: ask(replica, *numbers), wanted))
        assert values(futures) == wanted
        batches, requests, tokens, restarts, ranks = counted(
            replica,
            *("batches_total", "requests_total", "tokens_total", "restarts_total", "ranks_alive"),
        )
        assert (requests, tokens, restarts, ranks) == (200, sum(lengths), 0, tp * pp)
        assert batches < 200 or attend


def test_several_sequences_a_request_with_lengths(tmp_path: Path) -> None:
    ids = tensor("X", INT32, -1, allow_ragged_batch=True)
    config = model_config(
        tmp_path,
        [ids, tensor("LENGTHS", INT32, 1)],
        [tensor("Y", INT32, -1)],
        engine="echo",
        lengths="LENGTHS",
    )
    inputs = {
        "X": np.array([[1, 2, 0], [3, 0, 0], [4, 5, 6]], np.int32),
        "LENGTHS": np.array([[2], [1], [3]], np.int32),
    }
    with served(config, tmp_path) as replica:
        first, second = replica.ask_all([inputs, inputs])
        for answer in (first, second):
            assert answer.result(LIMIT)["Y"].tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
        assert counted(replica, "batches_total", "tokens_total", "tokens_saved_total") == [1, 12, 6]


def test_rows_of_fixed_size_and_several_outputs(tmp_path: Path) -> None:
    config = model_config(
        tmp_path,
        [tensor("A", FP32, 2), tensor("B", "TYPE_INT64", 1)],
        [tensor("A2", FP32, 2), tensor("B2", "TYPE_INT64", 1)],
        engine="echo",
        tensor_parallel_size=2,
    )
    requests: list[dict[str, Array]] = [
        {"A": np.full((b, 2), b, np.float32), "B": np.full((b, 1), -b, np.int64)} for b in (1, 3, 2)
    ]
    with served(config, tmp_path) as replica:
        for inputs, future in zip(requests, replica.ask_all(requests), strict=True):
            outputs = future.result(LIMIT)
            assert np.array_equal(outputs["A2"], inputs["A"])
            assert np.array_equal(outputs["B2"], inputs["B"])


@pytest.mark.parametrize("victim", [0, 1, 2, 3])
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
        generation, restarts, replays, ranks = counted(
            replica, "generation", "restarts_total", "replays_total", "ranks_alive"
        )
        assert (generation, restarts, ranks) == (2, 1, 4)
        assert replays >= 1
        assert not any(map(alive, before))


def test_a_rank_killed_while_idle_is_replaced_before_anyone_asks(two: Served) -> None:
    before = pids(two)
    os.kill(before[1], signal.SIGKILL)
    until(lambda: counted(two, "generation", "ranks_alive") == [2, 2])
    assert not set(before) & set(pids(two))
    assert values([ask(two, 7)]) == [[7]]
    assert counted(two, "restarts_total", "replays_total") == [1, 0]


@pytest.mark.parametrize("attend", [0.0, 0.002])
def test_killed_again_and_again_under_load(two: Served, attend: float) -> None:
    two.attend = attend
    with ThreadPoolExecutor(4) as clients:

        def client(number: int) -> bool:
            wanted = [[number, n] for n in range(50)]
            return all(values([ask(two, *pair, fault=(SLEEP, 0, 1))]) == [pair] for pair in wanted)

        running = [clients.submit(client, number) for number in range(4)]
        for generation in (1, 2):
            until(lambda g=generation: counted(two, "generation", "ranks_alive") == [g, 2])  # type: ignore[misc]
            os.kill(pids(two)[generation % 2], signal.SIGKILL)
        assert all(future.result(LIMIT) for future in running)
    assert counted(two, "generation") == [3]


def test_a_rank_killed_while_its_group_restarts_loses_nothing(two: Served) -> None:
    before = pids(two)
    sleeping = ask(two, 1, fault=(SLEEP, 0, 200))
    os.kill(before[0], signal.SIGKILL)
    until(lambda: bool(pids(two)) and not set(before) & set(pids(two)))
    os.kill(pids(two)[0], signal.SIGKILL)
    assert values([sleeping]) == [[1]]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_fails_its_request_alone_with_its_text(two: Served, rank: int) -> None:
    batch = [echo_input(n) for n in range(5)]
    batch[2] = echo_input(2, faults=[(RAISE, rank, 42), (SLEEP, 0, 100)])
    futures = two.ask_all(batch)
    with pytest.raises(RequestFailed, match=r"RuntimeError: raised as asked \(42\)"):
        futures[2].result(LIMIT)
    assert values(futures[:2] + futures[3:]) == [[0], [1], [3], [4]]
    assert counted(two, "restarts_total")[0] <= 2


@pytest.mark.parametrize(
    ("fault", "argument", "reason"),
    [(EXIT, 3, "rank 0 exited with 3"), (SEGFAULT, 0, "rank 0 was killed by SIGSEGV")],
)
def test_a_poison_request_is_the_only_one_to_fail(
    two: Served, fault: int, argument: int, reason: str
) -> None:
    batch = [echo_input(n) for n in range(8)]
    batch[5] = echo_input(5, faults=[(fault, 0, argument)])
    futures = two.ask_all(batch)
    with pytest.raises(RequestFailed, match=reason):
        futures[5].result(LIMIT)
    assert values(futures[:5] + futures[6:]) == [[n] for n in range(8) if n != 5]
    restarts, ranks = counted(two, "restarts_total", "ranks_alive")
    assert restarts <= 2
    assert ranks == 2


def test_a_refused_request_costs_no_restart(two: Served) -> None:
    before = pids(two)
    batch = [echo_input(n) for n in range(5)]
    batch[1] = echo_input(1, faults=[(REFUSE, 0, 9)])
    futures = two.ask_all(batch)
    with pytest.raises(InvalidInput, match=r"refused as asked \(9\)"):
        futures[1].result(LIMIT)
    assert values([futures[0], *futures[2:]]) == [[0], [2], [3], [4]]
    assert counted(two, "restarts_total") == [0]
    assert pids(two) == before


def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    with served(echo_config(tmp_path, max_queue_requests=2), tmp_path) as replica:
        in_hand = ask(replica, 0, fault=(SLEEP, 0, 200))
        waiting = [ask(replica, 1), ask(replica, 2)]
        refused = ask(replica, 3)
        assert refused.done()
        with pytest.raises(Unavailable, match=r"the queue is full \(2 requests\)"):
            refused.result()
        assert values([in_hand, *waiting]) == [[0], [1], [2]]
        assert values([ask(replica, 4)]) == [[4]]


def test_a_request_larger_than_a_slot_is_refused_and_the_next_served(tmp_path: Path) -> None:
    with served(echo_config(tmp_path, max_batch_bytes=4096), tmp_path) as replica:
        with pytest.raises(InvalidInput, match="max_batch_bytes is 4096"):
            ask(replica, *range(1100)).result(LIMIT)
        assert values([ask(replica, *range(900))]) == [list(range(900))]
        assert counted(replica, "restarts_total") == [0]


def test_requests_that_fit_alone_are_served_together(tmp_path: Path) -> None:
    x = [tensor("X", FP32, 256)]
    config = model_config(tmp_path, x, x, engine="echo", max_batch_bytes=4096)
    requests: list[dict[str, Array]] = [{"X": np.full((1, 256), n, np.float32)} for n in range(4)]
    with served(config, tmp_path) as replica:
        answers = [future.result(LIMIT)["X"][0, 0] for future in replica.ask_all(requests)]
    assert answers == [0, 1, 2, 3]


def test_wrong_lengths_are_refused_before_any_rank_sees_them(two: Served) -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        two.ask(X=np.ones((1, 0), np.int32), FAULT=np.zeros((1, 3), np.int32)).result(LIMIT)
    assert counted(two, "batches_total") == [0]


def test_two_replicas_do_not_disturb_each_other(tmp_path: Path) -> None:
    config = echo_config(tmp_path, tensor_parallel_size=2, replicas=2)
    with served(config, tmp_path) as first, served(config, tmp_path, index=1) as second:
        untouched = pids(second)
        replayed = ask(first, 1, fault=(SLEEP, 0, 200))
        os.kill(pids(first)[0], signal.SIGKILL)
        assert values([ask(second, 2)]) == [[2]]
        assert values([replayed]) == [[1]]
        assert pids(second) == untouched
        assert counted(second, "generation") == [1]


def test_stop_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    alone(start_and_stop, tmp_path)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def start_and_stop(folder: str) -> None:
    """Without the help of the garbage collector, and at once; so two replicas that have talked."""
    before = opened()
    gc.disable()
    config = echo_config(Path(folder), replicas=2, tensor_parallel_size=2)
    with served(config, Path(folder)) as first, served(config, Path(folder), index=1) as second:
        processes = pids(first) + pids(second)
        held = [ask(first, 1, fault=(SLEEP, 0, 100)), ask(first, 2)]
        os.kill(pids(first)[1], signal.SIGKILL)
        assert values(held) == [[1], [2]]
        until(lambda: counted(first, "generation", "ranks_alive") == [2, 2])
        for pid in [os.getpid(), *processes[2:], *pids(first)]:  # All memory is without a name.
            assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()
        processes += pids(first)
        assert values([ask(first, 1), ask(second, 1)]) == [[1], [1]]
        del held
    assert not any(map(alive, processes))
    assert opened() == before


def test_a_generation_is_freed_at_once(tmp_path: Path) -> None:
    """Its memory files, too, without waiting for the garbage collector."""
    alone(die_again_and_again, tmp_path)


def die_again_and_again(folder: str) -> None:
    gc.disable()
    with served(echo_config(Path(folder), tensor_parallel_size=2), Path(folder)) as two:
        counts = []
        for generation in (2, 3, 4):
            held = [ask(two, 1, fault=(SLEEP, 0, 50)), ask(two, 2)]
            os.kill(pids(two)[1], signal.SIGKILL)
            assert values(held) == [[1], [2]]
            until(lambda want=generation: counted(two, "generation", "ranks_alive") == [want, 2])
            del held
            counts.append(opened())
    assert counts == counts[:1] * 3


def test_stop_answers_or_refuses_what_is_in_flight(tmp_path: Path) -> None:
    with served(echo_config(tmp_path), tmp_path) as replica:
        futures = [ask(replica, 1, fault=(SLEEP, 0, 100)), ask(replica, 2)]
    for future in futures:
        assert isinstance(future.exception(0), Unavailable | None)


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


def test_a_request_after_stop_is_refused(tmp_path: Path) -> None:
    with served(echo_config(tmp_path), tmp_path) as replica:
        pass
    with pytest.raises(Unavailable):
        ask(replica, 1).result(1.0)


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


def test_ranks_die_with_their_front(tmp_path: Path) -> None:
    front = subprocess.Popen(
        [sys.executable, "-c", FRONT, str(tmp_path)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends/python_mp")])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert front.stdout
    assert front.stdout.readline() == "serving\n"
    pids = list(rank_processes(front.pid).values())
    assert len(pids) == 4
    front.kill()
    front.wait()
    front.stdout.close()
    try:
        until(lambda: not any(map(alive, pids)), seconds=1.0)
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


FRONT = """
import pathlib, sys, time
from tests.support import harness
from python_mp.rank.engines.echo import HANG
folder = pathlib.Path(sys.argv[1])
config = harness.echo_config(folder, tensor_parallel_size=2, pipeline_parallel_size=2)
with harness.served(config, folder) as replica:
    replica.ask(**harness.echo_input(1, faults=[(HANG, 1, 0)]))
    print("serving", flush=True)
    time.sleep(60)
"""


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    x = [tensor("X", FP32, 4)]
    (tmp_path / "1").mkdir()
    config = model_config(tmp_path, x, x, engine="torch", tensor_parallel_size=2)
    with (
        pytest.raises(LoadError, match=r"neither module\.py nor a checkpoint's config\.json"),
        served(config, tmp_path),
    ):
        pass
    assert rank_processes(os.getpid()) == {}


def test_a_start_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    config = echo_config(tmp_path, start_timeout_seconds=3, **{"module.start_seconds": 60})
    with (
        pytest.raises(LoadError, match=r"ranks \[0\] did not load within 3 s"),
        served(config, tmp_path),
    ):
        pass
    assert rank_processes(os.getpid()) == {}
