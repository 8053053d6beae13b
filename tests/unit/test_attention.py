"""Attention of packed rows against its formula, in all that it can be asked for."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from python_mp.sharding import row_attention
from python_mp.sharding.attention import Masking, attention
from python_mp.sharding.packed import Packed
from tests.support.instruction_sets import SETS, computed_by
from tests.support.replicas import Array

HEADS, SIZE = 4, 8


def formula(
    q: Array, k: Array, v: Array, bias: Array | None, sinks: Array | None, **asked: float
) -> Array:
    """Of one sequence, [tokens, heads, size], in float64, row by row."""
    out = np.zeros(q.shape)
    for head in range(HEADS):
        of = head * k.shape[1] // HEADS
        for i in range(len(q)):
            seen = [
                j
                for j in range(len(q))
                if abs(i - j) < asked.get("window", len(q)) and (j <= i or not asked.get("causal"))
            ]
            scores = k[seen, of] @ q[i, head] * asked.get("scale", SIZE**-0.5)
            if cap := asked.get("softcap"):
                scores = np.tanh(scores / cap) * cap
            scores = scores if bias is None else scores + bias[head, i, seen]
            weights = np.exp(scores)
            of_nothing = 0 if sinks is None else np.exp(sinks[head])
            out[i, head] = weights @ v[seen, of] / (weights.sum() + of_nothing)
    return out.reshape(len(q), -1)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9) | st.just(40), min_size=1, max_size=4),
    groups=st.sampled_from([1, 2, 4]),
    asked=st.fixed_dictionaries(
        {},
        optional={
            "causal": st.just(True),
            "window": st.integers(1, 9),
            "scale": st.sampled_from([0.2, 1.0]),
            "softcap": st.just(2.0),
        },
    ),
    more=st.sets(st.sampled_from(["bias", "sinks"])),
    is_compiled=st.booleans(),
)
def test_it_computes_its_formula(
    lengths: list[int], groups: int, asked: dict[str, float], more: set[str], is_compiled: bool
) -> None:
    random, total = np.random.default_rng(len(lengths)), sum(lengths)
    q = random.standard_normal((total, HEADS, SIZE))
    k, v = random.standard_normal((2, total, HEADS // groups, SIZE))
    bias = random.standard_normal((HEADS, 40, 40)) if "bias" in more else None
    sinks = random.standard_normal(HEADS) if "sinks" in more else None
    ends = np.cumsum([0, *lengths])
    batch = Packed({"cu_seqlens": ends.astype(np.int32)}, torch.device("cpu"))
    with patch.object(row_attention, "kernels", row_attention.kernels if is_compiled else None):
        found = batch.attend(
            *(torch.from_numpy(each).float() for each in (q, k, v)),
            **asked,  # type: ignore[arg-type]
            bias=None if bias is None else lambda n: torch.from_numpy(bias[:, :n, :n]),
            sinks=None if sinks is None else torch.from_numpy(sinks),
        )
    for start, stop in itertools.pairwise(ends):
        rows = slice(start, stop)
        wanted = formula(q[rows], k[rows], v[rows], bias, sinks, **asked)
        np.testing.assert_allclose(found[rows].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("which", SETS)
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 3) | st.sampled_from([16, 17, 150, 300]), min_size=1).filter(
        any
    ),
    size=st.integers(1, 40) | st.just(80),
    groups=st.sampled_from([1, 3]),
    masking=st.builds(Masking, causal=st.booleans(), window=st.none() | st.just(20)),
)
def test_columns_of_one_product(
    which: int, lengths: list[int], size: int, groups: int, masking: Masking
) -> None:
    """Queries, keys and values side by side, of texts that several threads share."""
    heads = 2 * groups
    every = torch.randn(sum(lengths), (heads + 4) * size)
    q, k, v = (
        part.unflatten(1, (-1, size))
        for part in every.split_with_sizes([heads * size, 2 * size, 2 * size], 1)
    )
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    with computed_by(which):
        found = row_attention.attend(q, k, v, ends, masking, None)
    torch.testing.assert_close(found, attention(q, k, v, lengths, masking), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ends", [[0, 3], [1, 4], [0, 3, 1, 4]])
def test_rows_that_are_not_there_are_refused(ends: list[int]) -> None:
    q = torch.zeros(4, 2, 8)
    with pytest.raises(ValueError, match="cu_seqlens"):
        row_attention.attend(q, q, q, torch.tensor(ends).int(), Masking(), None)
