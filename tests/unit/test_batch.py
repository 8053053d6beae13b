"""Packing requests into a batch and taking the outputs apart again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.model.batch import CU_SEQLENS, Batch
from python_mp.model.config import ModelConfig
from python_mp.model.errors import InvalidInput, RequestFailed
from python_mp.model.request import Request, read_request
from tests.support.configs import FP32, INT32, model_config, tensor
from tests.support.replicas import Array, FutureAnswer


def ragged(name: str, dtype: str, *more: int, **options: Any) -> dict[str, Any]:
    return tensor(name, dtype, -1, *more, allow_ragged_batch=True, **options)


CONFIG = model_config(
    Path("m"),
    [
        ragged("IDS", INT32),
        tensor("LENGTHS", INT32, 1, optional=True),
        tensor("BIAS", FP32, 2),
        ragged("MORE", FP32, 3, optional=True),
    ],
    [tensor("ROWS", FP32, -1, 2), tensor("SUM", FP32, 1)],
    engine="echo",
    lengths="LENGTHS",
)
DENSE = model_config(Path("m"), [tensor("A", FP32, -1)], [tensor("A", FP32, -1)], engine="echo")
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def request(lengths: Sequence[int], config: ModelConfig = CONFIG, first: int = 1) -> Request:
    """Sequences holding first, first + 1, ...; what only pads holds -1."""
    ids = np.full((len(lengths), max(lengths)), -1, np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = np.arange(first, first + length)
        first += length
    inputs = {
        "IDS": ids,
        "LENGTHS": np.array(lengths, np.int32)[:, None],
        "BIAS": np.arange(2 * len(lengths), dtype=np.float32).reshape(-1, 2),
    }
    return read_request(inputs, config, FutureAnswer())


@given(st.lists(LENGTHS, min_size=1, max_size=6))
def test_pack_then_split_is_the_identity(requests: list[list[int]]) -> None:
    starts = np.cumsum([1, *(sum(lengths) for lengths in requests)])
    read = [request(lengths, first=int(at)) for lengths, at in zip(requests, starts, strict=False)]
    batch = Batch(1, tuple(read))
    packed = {name: np.concatenate(parts) for name, parts in batch.pack(CONFIG).items()}
    assert packed.keys() == {CU_SEQLENS, "IDS", "BIAS"}  # lengths are in cu_seqlens
    flat = [length for lengths in requests for length in lengths]
    assert packed[CU_SEQLENS].tolist() == [0, *np.cumsum(flat)]
    assert packed["IDS"].tolist() == list(range(1, sum(flat) + 1))  # every real id, no padding
    assert batch.tokens == sum(flat)
    assert batch.tokens_saved == max(flat) * len(flat) - sum(flat)

    rows = np.stack([packed["IDS"], -packed["IDS"]], axis=1).astype(np.float32)
    outputs = {"ROWS": rows, "SUM": packed["BIAS"].sum(1, keepdims=True)}
    for each, answer in zip(read, batch.split(outputs, CONFIG.outputs), strict=True):
        padded = np.maximum(each.inputs["IDS"], 0).astype(np.float32)
        assert np.array_equal(answer["ROWS"], np.stack([padded, -padded], axis=2))
        assert np.array_equal(answer["SUM"], each.inputs["BIAS"].sum(1, keepdims=True))


GROUPS = model_config(
    Path("m"),
    [
        *(ragged("AUDIO", FP32, 2), ragged("IDS", INT32), ragged("TYPES", INT32)),
        *(tensor("SECONDS", INT32, 1), tensor("LENGTHS", INT32, 1, optional=True)),
    ],
    [tensor("SOUND", FP32, -1, 2), tensor("WORDS", INT32, -1), tensor("SUM", INT32, 1)],
    engine="echo",
    lengths="LENGTHS:IDS+TYPES+WORDS, SECONDS:AUDIO+SOUND",
    min_sequence_length=0,
)
PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=4)


@given(st.lists(PAIRS, min_size=1, max_size=4), st.integers(0, 2))
def test_inputs_of_their_own_lengths(requests: list[list[tuple[int, int]]], padding: int) -> None:
    """Sequences may be empty; TYPES has the lengths of IDS, each output those of its group."""
    random, read = np.random.default_rng(0), []
    for pairs in requests:
        words, sounds = (np.array(each, np.int32) for each in zip(*pairs, strict=True))
        ids = random.integers(1, 9, (len(pairs), max(words) + padding)).astype(np.int32)
        audio = random.random((len(pairs), max(sounds), 2), np.float32)
        given = {"LENGTHS": words[:, None], "SECONDS": sounds[:, None]}
        read.append(
            read_request(
                {"IDS": ids, "TYPES": -ids, "AUDIO": audio} | given, GROUPS, FutureAnswer()
            )
        )
    flat = [pair for pairs in requests for pair in pairs]
    batch = Batch(1, tuple(read))
    packed = {name: np.concatenate(parts) for name, parts in batch.pack(GROUPS).items()}
    assert packed[CU_SEQLENS].tolist() == [0, *np.cumsum([words for words, _ in flat])]
    assert packed["cu_seqlens:AUDIO+SOUND"].tolist() == [0, *np.cumsum([each for _, each in flat])]
    assert packed.keys() == {"IDS", "TYPES", "AUDIO", CU_SEQLENS, "cu_seqlens:AUDIO+SOUND"}
    np.testing.assert_array_equal(packed["IDS"], -packed["TYPES"])
    sums = np.zeros((len(flat), 1), np.int32)
    outputs = {"SOUND": packed["AUDIO"], "WORDS": packed["TYPES"], "SUM": sums}
    for each, answer, pairs in zip(
        read, batch.split(outputs, GROUPS.outputs), requests, strict=True
    ):
        assert each.tokens == sum(map(sum, pairs))
        assert each.size.tokens == sum(max(1, n) for pair in pairs for n in pair)
        for n, (words, sounds) in enumerate(pairs):
            assert np.array_equal(answer["WORDS"][n, :words], each.inputs["TYPES"][n, :words])
            assert np.array_equal(answer["SOUND"][n, :sounds], each.inputs["AUDIO"][n, :sounds])
            assert not answer["WORDS"][n, words:].any()


def test_signature_tells_apart_what_cannot_be_packed_together() -> None:
    def signature(config: ModelConfig, **inputs: Array) -> Any:
        return read_request(inputs, config, FutureAnswer()).signature

    ids, bias = np.ones((1, 3), np.int32), np.zeros((1, 2), np.float32)
    more = np.ones((1, 3, 3), np.float32)
    plain = signature(CONFIG, IDS=ids, BIAS=bias)
    assert plain == signature(CONFIG, IDS=ids[:, :2], BIAS=bias)  # other lengths: same batch
    assert plain == signature(CONFIG, IDS=np.ones((2, 3), np.int32), BIAS=np.zeros((2, 2)))
    assert plain != signature(CONFIG, IDS=ids, BIAS=bias, MORE=more)
    widths = {signature(DENSE, A=np.ones((1, width), np.float32)) for width in (1, 2, 3)}
    assert len(widths) == 3


@pytest.mark.parametrize("sizes", [{"ROWS": 3}, {"ROWS": 4, "SUM": 1}, {"ROWS": 3, "SUM": 2}])
def test_an_engine_that_returns_other_rows_is_told(sizes: dict[str, int]) -> None:
    outputs = {name: np.zeros((rows, 2)) for name, rows in sizes.items()}
    with pytest.raises(RequestFailed, match="has not [13] rows"):
        Batch(1, (request([3]),)).split(outputs, CONFIG.outputs)


def made(ids: int, more: int, b: int = 1, lengths: Sequence[int] = ()) -> dict[str, Array]:
    """Without lengths every row is real."""
    inputs: dict[str, Array] = {"IDS": np.ones((b, ids), np.int32), "BIAS": np.zeros((b, 2))}
    given = {"LENGTHS": np.array(lengths, np.int32)[:, None]} if lengths else {}
    return inputs | {"MORE": np.ones((b, more, 3), np.float32)} | given


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "the batch is empty"),
        (made(4, 4, b=0), "the batch is empty"),
        (made(3, 4), "'IDS': 3, 'MORE': 4"),
        (made(0, 1), "'IDS': 0, 'MORE': 1"),
        *((made(4, 4, lengths=[n]), "'LENGTHS' holds .*; it must be 1 to 4") for n in (0, -1, 5)),
    ],
)
def test_inputs_that_are_no_batch_are_refused(inputs: dict[str, Array], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_request(inputs, CONFIG, FutureAnswer())
    read = read_request(made(4, 4, b=3), CONFIG, FutureAnswer())
    assert (read.lengths, read.tokens) == ([[4, 4, 4]], 12)
