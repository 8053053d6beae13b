"""Requests larger than a batch: cut between sequences, and put together as if they had not been."""

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from python_mp.front.schedule.parts import cut
from python_mp.model.batch import Batch
from python_mp.model.config import ModelConfig
from python_mp.model.errors import InvalidInput, RequestFailed, Unavailable
from python_mp.model.request import Request, read_request
from tests.support.configs import FP32, INT32, model_config, tensor
from tests.support.replicas import Array, FutureAnswer

TOKENS, NBYTES = 12, 1024
LENGTHS = st.lists(st.integers(1, TOKENS), min_size=1, max_size=20)


def config(*outputs: dict[str, Any], **parameters: Any) -> ModelConfig:
    bounds = {"max_batch_tokens": TOKENS, "max_batch_bytes": NBYTES} | parameters
    return model_config(
        Path("m"),
        [tensor("IDS", INT32, -1, allow_ragged_batch=True), tensor("N", INT32, 1)],
        outputs or [tensor("ROWS", FP32, -1, 2), tensor("SUM", INT32, 1)],
        engine="echo",
        lengths="N",
        **bounds,
    )


CONFIG = config()


def request(lengths: Sequence[int], model: ModelConfig = CONFIG) -> Request:
    ids = np.random.default_rng(0).integers(1, 99, (len(lengths), max(lengths)), np.int32)
    inputs = {"IDS": ids, "N": np.array(lengths, np.int32)[:, None]}
    return read_request(inputs, model, FutureAnswer())


def compute(batch: Batch) -> list[dict[str, Array]]:
    """As a rank does: nothing here knows of requests."""
    packed = {name: np.concatenate(parts) for name, parts in batch.pack(CONFIG).items()}
    ids, ends = packed["IDS"], packed["cu_seqlens"]
    rows = np.stack([ids, -ids], 1).astype(np.float32)
    sums = np.array([[ids[a:b].sum()] for a, b in pairwise(ends)], np.int32)
    return batch.split({"ROWS": rows, "SUM": sums}, CONFIG.outputs)


@given(LENGTHS, st.randoms(use_true_random=False))
def test_the_answer_is_that_of_the_uncut_request(lengths: list[int], order: random.Random) -> None:
    whole = request(lengths)
    (expected,) = compute(Batch(1, (whole,)))
    parts = cut(whole, CONFIG)
    assert [n for part in parts for n in part.lengths[0]] == lengths
    assert all(part.size.fits(CONFIG.parameters) for part in parts)
    assert sum(part.nbytes for part in parts) == whole.nbytes
    larger = [request([*part.lengths[0], *after.lengths[0][:1]]) for part, after in pairwise(parts)]
    assert not any(each.size.fits(CONFIG.parameters) for each in larger), "a part is full"
    whole.answer.cancelled = True  # type: ignore[attr-defined]
    assert all(part.is_cancelled() for part in parts)
    order.shuffle(parts)
    for part in parts:
        assert not whole.answer.future.done()  # type: ignore[attr-defined]
        (outputs,) = compute(Batch(1, (part,)))
        part.deliver(part.send, outputs)
        for array in outputs.values():  # The slot is used again.
            if not array.flags.owndata:
                array.fill(77)
    answer = whole.answer.future.result(0)  # type: ignore[attr-defined]
    assert answer.keys() == expected.keys()
    assert all(np.array_equal(answer[name], array) for name, array in expected.items())


def answer(of: Request) -> Any:
    assert isinstance(of.answer, FutureAnswer)
    return of.answer.future


@given(LENGTHS, st.data())
def test_whatever_its_parts_become(lengths: list[int], data: st.DataObject) -> None:
    whole = request(lengths)
    parts = cut(whole, CONFIG)
    assert [part.continues for part in parts] == [n > 0 for n in range(len(parts))]
    fails = [data.draw(st.booleans()) for _ in parts]
    for part, failed in data.draw(st.permutations(list(zip(parts, fails, strict=True)))):
        if failed:
            part.deliver(part.answer.fail, Unavailable("no"))  # A second set_result would raise.
            assert all(each.answered for each in parts), "what still waits of it is dropped"
        else:
            part.deliver(part.send, compute(Batch(1, (part,)))[0])
    assert answer(whole).done()
    assert (answer(whole).exception(0) is not None) == any(fails)
    assert all(part.answered for part in parts)


@pytest.mark.parametrize(
    ("lengths", "more", "said"),
    [
        ([1, TOKENS + 1], {}, "sequence 1 of the request has 13 rows; max_batch_tokens is 12"),
        ([300] * 2, {"max_batch_tokens": 1 << 20}, "sequence 0 .* has 1204 bytes; max_batch_bytes"),
        ([150], {"max_batch_tokens": 999}, "would be answered with 1204 bytes; max_batch_bytes is"),
        ([9] * 99, {"max_queue_bytes": 2048}, "has 3960 bytes; max_queue_bytes is 2048"),
    ],
)
def test_what_cannot_be_cut_is_refused(lengths: list[int], more: Any, said: str) -> None:
    model = config(**more)
    with pytest.raises(InvalidInput, match=said):
        cut(request(lengths, model), model)


def test_outputs_of_other_shapes_cannot_be_put_together() -> None:
    model = config(tensor("BOXES", FP32, -1, -1))
    whole = request([TOKENS] * 2, model)
    for width, part in enumerate(cut(whole, model)):
        part.deliver(part.send, {"BOXES": np.zeros((1, TOKENS, width), np.float32)})
    with pytest.raises(RequestFailed, match="'BOXES' has another shape in each part"):
        answer(whole).result(0)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=40), st.integers(1200, 6000))
def test_an_answer_is_never_larger_than_it_may_be(lengths: list[int], most: int) -> None:
    """Its sequences are padded to the longest. Of free sizes that is known only afterwards."""
    bounds = {"max_batch_tokens": 40, "max_queue_bytes": most, "max_batch_bytes": 1024}
    fixed = config(tensor("ROWS", FP32, -1, 2), **bounds)
    free = config(tensor("ROWS", FP32, -1, -1), **bounds)
    assume(request(lengths).nbytes <= most)
    whole = request(lengths, free)
    for part in cut(whole, free):
        rows = np.ones((part.tokens, 2), np.float32)
        try:
            (outputs,) = Batch(1, (part,)).split({"ROWS": rows}, free.outputs, most)
        except RequestFailed as error:
            part.deliver(part.answer.fail, error)
        else:
            part.deliver(part.send, outputs)
    nbytes = len(lengths) * max(lengths) * 2 * 4
    assert (answer(whole).exception(0) is not None) == (nbytes > most)
    if nbytes > most:
        with pytest.raises(InvalidInput, match=f"answered with {nbytes} bytes; {most} is the most"):
            cut(request(lengths, fixed), fixed)
    else:
        assert cut(request(lengths, fixed), fixed)
