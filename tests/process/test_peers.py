"""Two replicas: what waits at one that is down is computed by the other."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from python_mp.channel import Arena, Kind, Message
from python_mp.config import ModelConfig
from python_mp.errors import RequestFailed, Unavailable
from python_mp.front.status import State, Status
from python_mp.rank.engines.echo import EXIT, RAISE, REFUSE, SLEEP
from tests.support.harness import (
    LIMIT,
    Served,
    ask,
    counted,
    echo_config,
    echo_input,
    pids,
    served,
    until,
    values,
)

START_SECONDS = 2.0


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Served, Served]]:
    """Two replicas that take long to start."""
    more: dict[str, Any] = {"module.start_seconds": START_SECONDS}
    config = echo_config(tmp_path, replicas=2, tensor_parallel_size=2, **more)
    with served(config, tmp_path) as first, served(config, tmp_path, index=1) as second:
        yield first, second


def test_what_a_killed_replica_had_is_answered_by_its_peer(pair: tuple[Served, Served]) -> None:
    first, second = pair
    held = [ask(first, 1, fault=(SLEEP, 0, 300)), *(ask(first, n) for n in range(2, 10))]
    began = time.monotonic()
    os.kill(pids(first)[1], signal.SIGKILL)
    assert values(held) == [[n] for n in range(1, 10)]
    assert values([ask(first, 10)]) == [[10]]
    assert time.monotonic() - began < START_SECONDS, "nobody waited for the new ranks"
    assert counted(first, "handed_over_total")[0] >= 9
    assert counted(second, "requests_total") == counted(first, "handed_over_total")
    until(lambda: counted(first, "ranks_alive") == [2])
    assert values([ask(first, 11)]) == [[11]]
    assert counted(first, "requests_total")[0] >= 2, "it serves itself again"


def test_what_crashed_a_replica_does_not_go_to_its_peer(pair: tuple[Served, Served]) -> None:
    first, second = pair
    poison, good = ask(first, 1, fault=(EXIT, 0, 1)), ask(first, 2)
    assert values([good]) == [[2]]
    with pytest.raises(RequestFailed):
        poison.result(4 * START_SECONDS + 5)
    assert counted(second, "generation", "restarts_total") == [1, 0]
    assert counted(first, "restarts_total") == [2]


@pytest.mark.parametrize(("fault", "error"), [(RAISE, RequestFailed), (REFUSE, Exception)])
def test_a_guest_is_told_what_is_wrong_with_it(
    pair: tuple[Served, Served], fault: int, error: type[Exception]
) -> None:
    first, _ = pair
    os.kill(pids(first)[0], signal.SIGKILL)
    until(lambda: counted(first, "ranks_alive") == [0])
    with pytest.raises(error, match="as asked"):
        ask(first, 1, fault=(fault, 0, 0)).result(10)


def test_without_a_peer_that_serves_requests_wait_at_home(pair: tuple[Served, Served]) -> None:
    first, second = pair
    for replica in pair:
        os.kill(pids(replica)[0], signal.SIGKILL)
    until(lambda: [counted(each, "ranks_alive") for each in pair] == [[0], [0]])
    assert values([ask(first, 1), ask(second, 2)]) == [[1], [2]]
    assert counted(first, "handed_over_total", "generation") == [0, 2]


def test_the_condemned_end_no_peers_groups_either(pair: tuple[Served, Served]) -> None:
    first, second = pair
    poison = (EXIT, 0, 1)
    with pytest.raises(RequestFailed):
        ask(first, 1, fault=poison).result(4 * START_SECONDS + 5)
    assert not first.replica.serves
    for replica in (second, first, second):
        with pytest.raises(RequestFailed, match="has ended two groups"):
            ask(replica, 1, fault=poison).result(1)
    assert values([ask(first, 2), ask(second, 3)]) == [[2], [3]]
    assert counted(second, "generation", "restarts_total") == [1, 0]


def test_a_replica_that_is_loaded_knows_what_is_condemned(tmp_path: Path) -> None:
    config, poison = echo_config(tmp_path, replicas=2), (EXIT, 0, 1)
    with served(config, tmp_path) as first:
        with pytest.raises(RequestFailed):
            ask(first, 1, fault=poison).result(LIMIT)
        with served(config, tmp_path, index=1) as second:
            with pytest.raises(RequestFailed, match="has ended two groups"):
                ask(second, 1, fault=poison).result(LIMIT)
            assert counted(second, "restarts_total") == [0]


def test_a_full_peer_leaves_the_queue_in_its_bounds_and_order(tmp_path: Path) -> None:
    more: dict[str, Any] = {"module.start_seconds": START_SECONDS}
    config = echo_config(tmp_path, replicas=2, max_queue_requests=4, max_batch_tokens=1, **more)
    with served(config, tmp_path) as first, served(config, tmp_path, index=1) as second:
        busy = [ask(second, n, fault=(SLEEP, 0, 3500 * (n == 0))) for n in range(5)]
        os.kill(pids(first)[0], signal.SIGKILL)
        until(lambda: counted(first, "ranks_alive") == [0])
        order: list[int] = []
        asked = [ask(first, n) for n in range(10)]
        for n, future in enumerate(asked):
            future.add_done_callback(lambda _, n=n: order.append(n))  # type: ignore[misc]
        for future in asked[4:]:
            with pytest.raises(Unavailable, match="queue is full"):
                future.result(1)
        assert values(asked[:4]) == [[n] for n in range(4)]
        assert order == [*range(4, 10), *range(4)]
        assert values(busy) == [[n] for n in range(5)]


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
            ask(first, 1).result(1)
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


class Stranger:
    """Says that it is replica 1 and serves, and listens; who connects to it gets no answer."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.status = Status(folder, config, 1)
        self.status.write(State.SERVING)
        (folder / "peers").mkdir(exist_ok=True)
        self.path = folder / "peers" / f"{os.getpid()}.1"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(str(self.path))
        self.socket.listen(1)

    def close(self) -> None:
        self.socket.close()
        self.path.unlink()
        self.status.remove()


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a name short enough for a socket's."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def test_a_peer_that_does_not_read_keeps_nobody_waiting(folder: Path) -> None:
    config = echo_config(folder, replicas=2, **{"module.start_seconds": 1})
    with served(config, folder) as replica, closing(Stranger(folder, config)):
        os.kill(pids(replica)[0], signal.SIGKILL)
        until(lambda: counted(replica, "ranks_alive") == [0])
        began = time.monotonic()
        held = [ask(replica, n) for n in range(400)]
        assert time.monotonic() - began < 2, "asking is not waiting"
        assert values(held) == [[n] for n in range(400)]
        assert counted(replica, "handed_over_total") == [0]


def test_a_home_that_does_not_read_keeps_no_replica_from_serving(folder: Path) -> None:
    config = echo_config(folder, replicas=2)
    inputs, passport = echo_input(1), json.dumps({"suspicion": 0.0, "alone": False, "seconds": 60})
    with served(config, folder) as replica, closing(Arena.create(1, 1 << 12)) as arena:
        home = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        home.connect(str(folder / "peers" / f"{os.getpid()}.0"))
        placed = arena.write_inputs(0, {name: [array] for name, array in inputs.items()})
        with closing(home):
            with suppress(OSError):
                for number in range(1000):  # Until it is hung up on.
                    message = Message(Kind.FORWARD, batch=number, tensors=placed, text=passport)
                    socket.send_fds(home, [message.encode()], [arena.fd])
            assert values([ask(replica, 2)]) == [[2]]
        assert counted(replica, "restarts_total") == [0]
