"""Hand-over between replicas: nothing is lost or answered twice, whatever fails in between."""

import errno
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_mp.front.peers import away, helper, line
from python_mp.front.peers.away import Away
from python_mp.front.peers.guests import Guests
from python_mp.front.schedule.reading import StreamReader
from python_mp.front.schedule.waiting import Waiting
from python_mp.front.status import State, Status
from python_mp.machine.net import Net
from python_mp.model.config import ModelConfig
from python_mp.model.errors import RequestFailed, TooLarge, Unavailable
from python_mp.model.request import Request, read_request
from python_mp.wire.arena import Arena
from python_mp.wire.message import Kind
from tests.support.configs import decoder_config, echo_config
from tests.support.descriptors import ours
from tests.support.processes import until
from tests.support.replicas import LIMIT, FutureAnswer, echo_input
from tests.support.streams import Parts


def _read(config: ModelConfig, inputs: Any, _: Any, answer: Any) -> Request:
    if "INPUT_IDS" in inputs:  # A stream; what is done with it here needs no more.
        return Request(inputs, [[1]], (), answer)
    return read_request(inputs, config, answer)


class House:
    """A replica without ranks: a queue that is lent from, and guests that somebody answers."""

    def __init__(self, folder: Path, config: ModelConfig, replica: int) -> None:
        self.config = config
        self.status = Status(folder, config, replica)
        self.net = Net()
        self.needs_help = True
        self.poison = ""
        self.warned: list[str] = []
        self.guests: list[Request] = []
        self.came_back: list[Request] = []
        self.settled: list[Request] = []
        self.heard: list[str] = []
        self.take_in, self.hear = self.guests.extend, self.warned.append
        self.stood_alone = 0
        self.queue = Waiting(config.parameters)
        self._lock = threading.Lock()
        self.away = Away(self, self.status, folder, self.net)
        read = partial(_read, config)
        self.peers = Guests(replica, folder, read, self.take_in, self, self.net)
        self.away.start()

    def close(self) -> None:
        self.peers.stop()
        self.away.stop()
        self.status.remove()

    def ask(self, *numbers: int) -> list[Request]:
        read = [read_request(echo_input(n), self.config, FutureAnswer()) for n in numbers]
        with self._lock:
            for each in read:
                self.queue.add(each)
        self.away.wake()
        return read

    def lend(self) -> Request | None:
        with self._lock:
            return self.queue.lend(lambda each: each.strays < 2) if self.needs_help else None

    def hear_part(self, request: Request, text: str) -> None:
        self.heard.append(text)

    def settle(self, request: Request) -> None:
        with self._lock:
            self.queue.settle(request)
        self.settled.append(request)

    def take_back(self, requests: list[Request]) -> None:
        self.came_back += requests
        with self._lock:
            self.queue.put_back(requests)

    def stand_alone(self) -> None:
        self.stood_alone += 1

    def poison_list(self) -> str:
        return self.poison

    def remove(self, request: Request) -> bool:
        with self._lock:
            return self.queue.remove(request)

    @property
    def waiting(self) -> list[Request]:
        with self._lock:
            return self.queue.waiting_since(time.perf_counter())


Make = Callable[[int], House]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """`make(n)`: replica n. Afterwards no thread and no descriptor is left."""
    monkeypatch.setattr(away, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(helper, "REST_SECONDS", 0.02)
    config, houses = echo_config(tmp_path, replicas=3), []
    threads, before = threading.active_count(), ours()

    def build(replica: int) -> House:
        houses.append(House(tmp_path, config, replica))
        if replica:
            houses[-1].status.write(State.SERVING)
        return houses[-1]

    yield build
    for house in houses:
        house.close()
        house.guests.clear()
    assert ours() <= before  # At once, and not when a thread gets round to it.
    until(lambda: threading.active_count() <= threads)


def answer(guest: Request) -> None:
    guest.deliver(guest.answer.send, {"Y": guest.inputs["X"]})


def result(request: Request) -> list[int]:
    assert isinstance(request.answer, FutureAnswer)
    return request.answer.future.result(LIMIT)["Y"][0].tolist()  # type: ignore[no-any-return]


def test_each_guest_comes_to_its_own_end(make: Make) -> None:
    """What is known of it goes with it, and comes back."""
    first, second = make(0), make(1)
    first.needs_help = False
    asked = first.ask(*range(4))
    asked[0].suspicion, asked[0].alone = 0.5, True
    asked[0].deadline = time.perf_counter() + 100
    first.needs_help = True
    first.away.wake()
    until(lambda: len(second.guests) == 4)
    guest = second.guests[0]
    assert (guest.suspicion, guest.alone, guest.guest) == (0.5, True, True)
    assert guest.content == asked[0].content
    assert abs(guest.deadline - asked[0].deadline) < 5
    del guest  # or the exception below keeps it
    second.guests[0].suspicion = 1.5
    second.guests[0].answer.fail(Unavailable("full"))
    until(lambda: first.came_back == asked[:1])
    assert asked[0].suspicion == 1.5, "what was found out is known at home"
    answer(second.guests[1])
    assert result(asked[1]) == [1]
    second.guests[2].answer.fail(RequestFailed("no"))
    with pytest.raises(RequestFailed, match="no"):
        result(asked[2])
    first.needs_help = False
    second.peers.stop()  # as if its process had died
    until(lambda: first.came_back == [asked[0], asked[3]])
    assert first.settled == asked[1:3]
    assert first.waiting == [asked[0], asked[3]], "in their old order"
    answer(second.guests[3])  # too late: its home computes it


def test_what_a_peer_says_is_understood_or_taken_for_its_end(make: Make) -> None:
    first, second = make(0), make(1)
    asked = first.ask(0, 1)
    until(lambda: len(second.guests) == 2)
    connection = second.guests[0].answer._connection  # type: ignore[attr-defined]
    connection.send(Kind.DONE, 77, {"Y": np.zeros(1)})  # Nobody waits for that.
    strange = {"error": "FromTheFuture", "text": "as yet unknown", "suspicion": 0.0}
    connection.send(Kind.REFUSED, 0, text=json.dumps(strange))
    with pytest.raises(RequestFailed, match="as yet unknown"):
        result(asked[0])
    first.needs_help = False
    connection.send(Kind.REFUSED, 1, text="{")
    until(lambda: first.came_back == asked[1:])
    assert asked[1].strays == 1


def test_only_the_same_user_is_heard(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line.os, "geteuid", lambda: 12345)
    first, second = make(0), make(1)
    asked = first.ask(1)
    until(lambda: first.stood_alone > 3)
    assert first.waiting == asked
    assert second.guests == []


def test_who_cannot_be_told_is_told_later(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make(0), make(1)
    first.needs_help = False
    tried = []

    def fail(*_: Any) -> None:
        tried.append(1)
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as broken:
        broken.setattr(line, "connect", fail)
        first.poison = "poison"
        first.away.spread()
        until(lambda: len(tried) > 2)
        assert second.warned == []
    until(lambda: second.warned == ["poison"])


def test_only_replicas_of_the_same_config_help_each_other(tmp_path: Path) -> None:
    """A reload may change what a version computes, while the old replicas still serve."""
    old = Status(tmp_path, echo_config(tmp_path, replicas=2), 1)
    old.write(State.SERVING)
    same = Status(tmp_path, echo_config(tmp_path, replicas=3), 0)
    new = Status(tmp_path, echo_config(tmp_path, replicas=2, max_batch_tokens=7), 0)
    assert [said["replica"] for said in same.serving_peers()] == [1]
    assert new.peers() == []


def test_what_has_its_answer_is_recalled(make: Make) -> None:
    first, second = make(0), make(1)
    part, other = first.ask(1, 2)
    until(lambda: len(second.guests) == 2)
    assert not any(guest.is_cancelled() for guest in second.guests)
    part.answered = True  # another part of it has failed
    first.away.wake()
    until(lambda: second.guests[0].is_cancelled())
    assert not second.guests[1].is_cancelled()
    answer(second.guests[1])
    assert result(other) == [2]
    until(lambda: not first.queue._lent)
    assert first.waiting == []


def test_what_is_too_large_for_a_peer_comes_back_and_strays(make: Make) -> None:
    """Others go there as before."""
    first, second = make(0), make(1)
    too_large, *others = first.ask(*range(3))
    until(lambda: len(second.guests) == 3)
    second.guests[0].answer.fail(TooLarge("27 blocks are needed"))
    until(lambda: len(second.guests) == 4)
    second.guests[3].answer.fail(TooLarge("27 blocks are needed"))
    until(lambda: first.waiting == [too_large])
    assert too_large.strays == 2
    others += first.ask(*range(3, 9))
    until(lambda: len(second.guests) == 10)
    for guest in second.guests[1:3] + second.guests[4:]:
        answer(guest)
    assert [result(each) for each in others] == [[n] for n in range(1, 9)]


def test_a_stream_that_is_not_over_is_not_settled(make: Make, tmp_path: Path) -> None:
    """Its peer may have had no room for more of it."""
    first, second = make(0), make(1)
    reader = StreamReader(decoder_config(tmp_path))
    stream = reader.read({"INPUT_IDS": np.array([[9, 9]], np.int32)}, {}, Parts())
    with first._lock:
        first.queue.add(stream)
    first.away.wake()
    until(lambda: len(second.guests) == 1)
    second.guests[0].answer.send({})
    until(lambda: len(second.guests) == 2)
    assert first.came_back == [stream]
    second.guests[1].answer.send({})
    until(lambda: first.waiting == [stream])
    assert first.settled == []


def test_who_says_much_hears_of_its_home_too(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer whose parts follow each other fast hung up after 5 s. And what is late there comes
    home."""
    monkeypatch.setattr(line, "PULSE_SECONDS", 0.2)
    monkeypatch.setattr(line, "SILENCE_SECONDS", 1.0)
    first, second = make(0), make(1)
    reader = StreamReader(decoder_config(tmp_path))
    stream = reader.read({"INPUT_IDS": np.array([[9, 9]], np.int32)}, {}, Parts())
    with first._lock:
        first.queue.add(stream)
    (late,) = first.ask(1)
    until(lambda: len(second.guests) == 2)
    late.deadline, first.needs_help = time.perf_counter() + 1.0, False
    guest = next(each for each in second.guests if "INPUT_IDS" in each.inputs)
    part = {"USAGE": np.zeros((1, 3), np.int32), "OUTPUT_IDS": np.zeros((1, 1), np.int32)}
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        guest.answer.part(part)  # type: ignore[attr-defined]
        time.sleep(0.02)
    assert first.came_back == [late]
    assert len(first.heard) > 50
    assert not guest.is_cancelled(), "the line is open"


@pytest.mark.parametrize("seed", range(3))
def test_nothing_lost_or_doubled(make: Make, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    kinds = [errno.EMFILE, errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EAGAIN]

    def failing(real: Callable[..., Any], share: float) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if chance.random() < share:
                number = chance.choice(kinds)
                raise OSError(number, os.strerror(number))
            return real(*args, **more)

        return call

    monkeypatch.setattr(Arena, "create", failing(Arena.create, 0.02))
    monkeypatch.setattr(line.Line, "_send", failing(line.Line._send, 0.02))
    monkeypatch.setattr(line, "_map", failing(line._map, 0.01))
    monkeypatch.setattr(line, "accept", failing(line.accept, 0.1))
    first, second, third = make(0), make(1), make(2)
    asked = first.ask(*range(500))

    def work() -> bool:
        """Whether all have their answers; what strayed twice is computed at home."""
        for house in (second, third):
            while house.guests:
                answer(house.guests.pop(chance.randrange(len(house.guests))))
        for each in first.waiting:
            if each.strays >= 2 and first.remove(each):
                each.deliver(each.answer.send, {"Y": each.inputs["X"]})
        return all(each.answered for each in asked)

    until(work, seconds=30)
    assert [result(each) for each in asked] == [[n] for n in range(500)]
    assert first.waiting == []
    assert len(first.settled) == len(set(first.settled)) > 0


@pytest.mark.parametrize("knows", [0, 1])
def test_what_is_poison_travels_before_anything_else(make: Make, knows: int) -> None:
    """From the one that lends, and to it."""
    houses = first, second = make(0), make(1)
    houses[knows].poison = "poison"
    warned = houses[1 - knows].warned
    first.ask(1)
    until(lambda: bool(second.guests))
    assert warned == ["poison"], "before anything is lent"
    first.needs_help = False
    second.status.write(State.RESTARTING)
    first.away.spread()
    assert warned == ["poison", "poison"], "before anybody else hears of it"
