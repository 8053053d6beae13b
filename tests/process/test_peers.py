"""Two replicas: what waits at one that is down is computed by the other."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from python_mp.batch import Request, read_request
from python_mp.config import ModelConfig
from python_mp.errors import RequestFailed, Unavailable
from python_mp.front import peers as peers_module
from python_mp.front.peers import Peers
from python_mp.front.status import State, Status
from python_mp.rank.engines.echo import EXIT, RAISE, REFUSE, SLEEP
from tests.harness import (
    FutureAnswer,
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


class Home:
    """A replica's side of a hand-over, without a replica; `took_back` has what came home."""

    def __init__(self, folder: Path, config: ModelConfig, replica: int) -> None:
        self.status = Status(folder, config, replica)
        self.guests: list[Request] = []
        self.took_back: list[Request] = []
        self.peers = Peers(
            config, replica, folder, self.status, self.guests.extend, self.took_back.extend
        )


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    config = echo_config(tmp_path, replicas=2)
    both = Home(tmp_path, config, 0), Home(tmp_path, config, 1)
    both[1].status.write(State.SERVING)
    yield both
    for home in both:
        home.peers.close()


def request(folder: Path, number: int) -> Request:
    return read_request(echo_input(number), echo_config(folder), FutureAnswer())


def test_a_guest_keeps_what_is_known_of_it(homes: tuple[Home, Home], tmp_path: Path) -> None:
    first, second = homes
    suspect = request(tmp_path, 1)
    suspect.suspicion, suspect.alone = 0.5, True
    suspect.deadline = time.perf_counter() + 100
    assert first.peers.hand_over([suspect]) == []
    until(lambda: bool(second.guests))
    (guest,) = second.guests
    assert (guest.suspicion, guest.alone, guest.guest) == (0.5, True, True)
    assert guest.content == suspect.content
    assert abs(guest.deadline - suspect.deadline) < 5


def test_what_a_peer_cannot_do_comes_home(homes: tuple[Home, Home], tmp_path: Path) -> None:
    first, second = homes
    away = [request(tmp_path, n) for n in range(3)]
    assert first.peers.hand_over(away) == []
    until(lambda: len(second.guests) == 3)
    second.guests[0].answer.fail(Unavailable("full"))
    until(lambda: first.took_back == away[:1])
    second.guests[1].answer.send({"Y": second.guests[1].inputs["X"]})
    answer = away[1].answer
    assert isinstance(answer, FutureAnswer)
    assert answer.future.result(5)["Y"].tolist() == [[1]]
    connection = second.guests[2].answer._connection  # type: ignore[attr-defined]
    connection.shutdown(socket.SHUT_RDWR)  # as if its process had died
    until(lambda: first.took_back == [away[0], away[2]])


def test_only_the_same_user_is_heard(
    homes: tuple[Home, Home], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = homes
    monkeypatch.setattr(peers_module.os, "geteuid", lambda: 12345)
    left = [request(tmp_path, 1)]
    assert first.peers.hand_over(left) == left
    assert second.guests == []
