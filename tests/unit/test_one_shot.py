"""What goes into the next batch."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.front.flights import Flight, Flights
from python_mp.front.schedule.expiry import Expiry
from python_mp.front.schedule.one_shot import OneShot
from python_mp.machine.net import Net
from python_mp.model.batch import Batch
from python_mp.model.config import Parameters
from python_mp.model.errors import InvalidInput, Unavailable
from python_mp.model.request import Request
from tests.support.configs import echo_config
from tests.support.replicas import FutureAnswer

CONFIG = echo_config(Path("/none"))


def request(tokens: int = 1, nbytes: int = 4, signature: str = "", **more: Any) -> Request:
    inputs = {"X": np.zeros(nbytes, np.uint8)}
    return Request(inputs, [[tokens]], ((signature, ()),), FutureAnswer(), **more)


def scheduler(*requests: Request, tokens: int = 10, size: int = 100, **bounds: int) -> OneShot:
    batch = {"max_batch_tokens": tokens, "max_batch_bytes": size}
    parameters = Parameters("echo", **{**batch, **bounds})
    made = OneShot(replace(CONFIG, parameters=parameters), Mock(), Mock())
    for each in requests:
        made.add(each)
    return made


@pytest.mark.parametrize(
    ("giant", "said"),
    [
        (request(tokens=11), "has 11 rows; max_batch_tokens is 10"),
        (request(nbytes=101), "has 101 bytes; max_batch_bytes is 100"),
        (request(output_nbytes=101), "would be answered with 101 bytes; max_batch_bytes is 100"),
    ],
)
def test_more_than_a_batch_holds_is_refused(giant: Request, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        scheduler(giant)


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 100), st.booleans()), min_size=1))
def test_batches_keep_order_and_bounds(wanted: list[tuple[int, int, bool]]) -> None:
    requests = [request(tokens, nbytes, alone=alone) for tokens, nbytes, alone in wanted]
    waiting, batches = scheduler(*requests, max_queue_requests=len(requests)), []
    while len(waiting):
        batches.append(waiting.next_requests())
    assert [each for batch in batches for each in batch] == requests
    for batch in batches:
        if len(batch) > 1:
            assert sum(each.tokens for each in batch) <= 10
            assert sum(each.nbytes for each in batch) <= 100
            assert not any(each.alone for each in batch)


def test_the_bytes_that_wait_are_bounded_too() -> None:
    waiting = scheduler(request(nbytes=60), max_queue_bytes=100)
    with pytest.raises(Unavailable, match=r"full \(60 bytes\)"):
        waiting.add(request(nbytes=41))
    waiting.add(request(nbytes=40))
    assert waiting.nbytes == 100
    taken = waiting.next_requests()
    waiting.put_back(taken)
    assert waiting.nbytes == 100
    assert waiting.remove(taken[0])
    assert not waiting.remove(taken[0])
    assert waiting.nbytes == 40


def test_what_has_been_answered_is_passed_over() -> None:
    requests = [request(suspicion=1.0), request(), request(), request()]
    waiting = scheduler(*requests)
    requests[0].answered = requests[2].answered = True
    assert waiting.lend(lambda _: True) is requests[1]
    waiting.put_back([requests[1]])
    assert waiting.next_requests() == [requests[1], requests[3]]
    assert (len(waiting), waiting.nbytes, waiting.next_requests()) == (0, 0, [])


def test_what_continues_a_request_is_taken_with_it() -> None:
    waiting = scheduler(request(), max_queue_requests=1)
    waiting.add(request(continues=True))
    assert len(waiting) == 2
    with pytest.raises(Unavailable, match="1 requests"):
        waiting.add(request())
    roomy = scheduler(request(), request(continues=True), max_queue_requests=2)
    roomy.add(request())


def test_what_is_lent_counts_until_it_is_settled_or_back() -> None:
    waiting = scheduler(request(nbytes=50), request(nbytes=40), max_queue_requests=2)
    lent = [waiting.lend(lambda _: True) for _ in range(2)]
    assert waiting.lend(lambda _: True) is None
    assert len(waiting) == waiting.nbytes == 0
    with pytest.raises(Unavailable, match=r"full \(2 requests\)"):
        waiting.add(request())
    assert lent[0]
    waiting.settle(lent[0])
    waiting.add(request())
    waiting.put_back([each for each in lent[1:] if each])
    assert waiting.take_out(lambda _: True)[0] is lent[1]


@given(st.data())
def test_lent_and_put_back_in_any_order_the_queue_keeps_its_own(data: st.DataObject) -> None:
    """A guest may be queued behind what came after it."""
    requests = [request(arrived=float(n), alone=True) for n in range(10)]
    waiting, lent, served = scheduler(*requests), [], []
    stays = data.draw(st.sets(st.integers(0, 9)))
    steps = ["lend", "back", "serve", "guest"]
    for step in data.draw(st.lists(st.sampled_from(steps), max_size=40)):
        if step == "lend" and (each := waiting.lend(lambda r: r.arrived not in stays)):
            lent.append(each)
        elif step == "back" and lent:
            waiting.put_back([lent.pop(data.draw(st.integers(0, len(lent) - 1)))])
        elif step == "serve" and len(waiting):
            served += waiting.next_requests()
        elif step == "guest":
            requests.append(request(arrived=data.draw(st.floats(0, 9)), alone=True))
            waiting.add(requests[-1])
        queue = waiting.waiting_since(100.0)
        assert queue == sorted(queue, key=lambda r: r.arrived)
        assert waiting.waiting_since(4.0) == [r for r in queue if r.arrived <= 4]
        assert len(queue) + len(lent) + len(served) == len(requests)
        assert len(waiting._lent) == len(lent)
        assert waiting.nbytes == sum(r.nbytes for r in queue)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"tokens": 4}, {"tokens": 7}),
        ({"nbytes": 40}, {"nbytes": 61}),
        ({"output_nbytes": 40}, {"output_nbytes": 61}),
        ({"signature": "a"}, {"signature": "b"}),
        ({"company": 1}, {}),
        ({}, {"company": 1}),
        ({"alone": True}, {}),
        ({}, {"alone": True}),
    ],
)
def test_what_parts_two_requests(first: dict[str, Any], second: dict[str, Any]) -> None:
    one, other = request(**first), request(**second)
    waiting = scheduler(one, other)
    assert waiting.next_requests() == [one]
    assert waiting.next_requests() == [other]
    exact = [request(tokens=4, nbytes=50), request(tokens=6, nbytes=50)]
    assert scheduler(*exact).next_requests() == exact, "bounds may be reached"


def test_what_has_its_answer_waits_no_more() -> None:
    requests = [request() for _ in range(4)]
    waiting = scheduler(*requests)
    lent = waiting.lend(lambda each: each is requests[3])
    assert lent is requests[3]
    for part in (requests[1], requests[3]):
        part.answered = True
    waiting.drop_answered()
    waiting.put_back([requests[3]])
    assert waiting.nbytes == 8
    assert waiting.next_requests() == [requests[0], requests[2]]


def test_a_late_request_is_given_up_after_an_error() -> None:
    """It must not lose the one call that woke it."""
    late, given_up = request(deadline=0.0), threading.Event()
    errors = iter([RuntimeError("a bug")])

    def waiting_since(_: float) -> list[Request]:
        for error in errors:
            raise error
        return [late]

    expiry = Expiry(waiting_since, lambda *_: given_up.set(), Net())
    expiry.start()
    expiry.wake()
    assert given_up.wait(10)
    expiry.stop()


@pytest.mark.parametrize("open_", [1, 32, 1000])
def test_who_has_gone_is_asked_often_and_all_are_in_turn(open_: int) -> None:
    """Among the oldest 32 each time; and however many there are, no more of them at a time."""
    clients = [Mock(is_cancelled=Mock(return_value=False)) for _ in range(open_)]
    waiting = [Request({}, [[1]], (), client, arrived=float(n)) for n, client in enumerate(clients)]
    expiry = Expiry(lambda _: waiting, Mock(), Net())
    turns = -(-open_ // 24)
    for _ in range(turns):
        expiry._sweep()
    asked = [client.is_cancelled.call_count for client in clients]
    assert min(asked) >= 1
    assert sum(asked) <= 32 * turns


@pytest.mark.parametrize("flying", [False, True])
@pytest.mark.parametrize("suspected", [False, True])
def test_a_suspect_flies_alone(flying: bool, suspected: bool) -> None:
    flights = Flights(3, set())
    if flying:
        batch = Batch(9, (request(suspicion=0.5 * suspected),))
        flights.add(Flight(batch, 0, 0.0, {0}))
    others, suspects = scheduler(request()), scheduler(request(suspicion=0.5))
    assert (others.next_batch(flights) is None) == (flying and suspected)
    assert (suspects.next_batch(flights) is None) == flying
