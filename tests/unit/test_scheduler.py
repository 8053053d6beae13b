"""What goes into the next batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.batch import Request
from python_mp.config import Parameters
from python_mp.errors import InvalidInput, Unavailable
from python_mp.front.scheduler import Scheduler
from tests.harness import FutureAnswer


def request(tokens: int = 1, nbytes: int = 4, signature: str = "", **more: Any) -> Request:
    inputs = {"X": np.zeros(nbytes, np.uint8)}
    return Request(inputs, [tokens], ((signature, ()),), FutureAnswer(), **more)


def scheduler(*requests: Request, tokens: int = 10, size: int = 100, **bounds: int) -> Scheduler:
    batch = {"max_batch_tokens": tokens, "max_batch_bytes": size}
    made = Scheduler(Parameters("echo", **{**batch, **bounds}))
    for each in requests:
        made.add(each)
    return made


def test_all_that_waits_goes_together_in_order() -> None:
    requests = [request() for _ in range(5)]
    waiting = scheduler(*requests)
    assert waiting.next_batch() == requests
    assert len(waiting) == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (request(tokens=4), request(tokens=7)),
        (request(nbytes=40), request(nbytes=61)),
        (request(signature="a"), request(signature="b")),
        (request(alone=True), request()),
        (request(), request(alone=True)),
    ],
    ids=["tokens", "bytes", "signature", "first is alone", "second is alone"],
)
def test_what_parts_two_requests(first: Request, second: Request) -> None:
    waiting = scheduler(first, second)
    assert waiting.next_batch() == [first]
    assert waiting.next_batch() == [second]


def test_bounds_may_be_reached() -> None:
    exact = [request(tokens=4, nbytes=50), request(tokens=6, nbytes=50)]
    assert scheduler(*exact).next_batch() == exact


def test_more_tokens_than_the_bound_still_go_alone() -> None:
    giant = request(tokens=11)
    waiting = scheduler(giant, request())
    assert waiting.next_batch() == [giant]


def test_more_bytes_than_the_bound_are_refused() -> None:
    with pytest.raises(InvalidInput, match="101 bytes; max_batch_bytes is 100"):
        scheduler(request(nbytes=101))


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 100), st.booleans()), min_size=1))
def test_batches_keep_order_and_bounds(wanted: list[tuple[int, int, bool]]) -> None:
    requests = [request(tokens, nbytes, alone=alone) for tokens, nbytes, alone in wanted]
    waiting, batches = scheduler(*requests, max_queue_requests=len(requests)), []
    while len(waiting):
        batches.append(waiting.next_batch())
    assert [each for batch in batches for each in batch] == requests
    for batch in batches:
        if len(batch) > 1:
            assert sum(each.tokens for each in batch) <= 10
            assert sum(each.nbytes for each in batch) <= 100
            assert not any(each.alone for each in batch)


def test_a_full_queue_refuses_and_what_is_put_back_does_not_count() -> None:
    waiting = scheduler(request(), request(), max_queue_requests=2)
    with pytest.raises(Unavailable, match=r"full \(2 requests\)"):
        waiting.add(request())
    batch = waiting.next_batch()
    waiting.add(request())
    waiting.put_back(batch)
    assert len(waiting) == 3


def test_the_bytes_that_wait_are_bounded_too() -> None:
    waiting = scheduler(request(nbytes=60), max_queue_bytes=100)
    with pytest.raises(Unavailable, match=r"full \(60 bytes\)"):
        waiting.add(request(nbytes=41))
    waiting.add(request(nbytes=40))
    assert waiting.nbytes == 100
    taken = waiting.next_batch()
    waiting.put_back(taken)
    assert waiting.nbytes == 100
    assert waiting.remove(taken[0])
    assert not waiting.remove(taken[0])
    assert waiting.nbytes == 40
    waiting.take_all()
    assert waiting.nbytes == 0


def test_waiting_since_is_oldest_first() -> None:
    old, older, new = request(arrived=2.0), request(arrived=1.0), request(arrived=4.0)
    assert scheduler(older, old, new).waiting_since(3.0) == [older, old]


def test_what_is_put_back_goes_first_in_its_old_order() -> None:
    requests = [request() for _ in range(3)]
    late = request()
    waiting = scheduler(*requests)
    batch = waiting.next_batch()
    waiting.add(late)
    waiting.put_back(batch)
    assert waiting.take_all() == [*requests, late]
    assert len(waiting) == 0


def test_next_is_suspect_looks_at_the_head_only() -> None:
    assert not scheduler().next_is_suspect
    assert scheduler(request(suspicion=0.5), request()).next_is_suspect
    assert not scheduler(request(), request(suspicion=1.0)).next_is_suspect
