"""Attention over pages against its formula, with blocks anywhere in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from python_mp.sharding import paged
from python_mp.sharding.kv_pages import BLOCK, new_cache
from python_mp.sharding.paged import attend_pages, store
from python_mp.sharding.paged_reference import attend_pages_reference
from tests.support.instruction_sets import SETS, computed_by
from tests.support.replicas import Array


def formula(q: Array, k: Array, v: Array, sinks: Array | None, **asked: Any) -> Array:
    """The last rows of one sequence, [rows, heads, size], in float64."""
    out, groups = np.zeros(q.shape), q.shape[1] // k.shape[1]
    for i, place in enumerate(range(len(k) - len(q), len(k))):
        first = max(0, place + 1 - (asked["window"] or len(k)))
        for head in range(q.shape[1]):
            scores = k[first : place + 1, head // groups] @ q[i, head]
            scores = scores * (asked["scale"] or q.shape[2] ** -0.5)
            if cap := asked["softcap"]:
                scores = np.tanh(scores / cap) * cap
            top = scores.max()
            weights = np.exp(scores - top)
            of_nothing = 0 if sinks is None else np.exp(sinks[head] - top)
            seen = v[first : place + 1, head // groups]
            out[i, head] = weights @ seen / (weights.sum() + of_nothing)
    return out


class Filled:
    """A cache with some sequences in it, whose last rows ask; garbage everywhere else."""

    def __init__(
        self, shapes: list[tuple[int, int]], kv: int, groups: int, head: int, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(len(shapes) + head)
        widths = [-(-context // BLOCK) for _, context in shapes]
        ids = torch.randperm(sum(widths) + 2).int()
        self.caches = new_cache(len(ids), kv, head, dtype, torch.device("cpu"))
        for cache in self.caches:
            cache.fill_(float("nan"))
        self.table = torch.full((len(shapes), max(widths, default=0)), -1, dtype=torch.int32)
        self.k, self.v = ([torch.randn(c, kv, head).to(dtype) for _, c in shapes] for _ in "kv")
        self.q = torch.randn(sum(r for r, _ in shapes), kv * groups, head).to(dtype)
        for n, width in enumerate(widths):
            mine, ids = ids[:width], ids[width:]
            self.table[n, :width] = mine
            at = torch.arange(len(self.k[n]))
            places = mine.long()[at // BLOCK] * BLOCK + at % BLOCK
            store(self.k[n], self.v[n], *self.caches, places)
        self.context = torch.tensor([c for _, c in shapes], dtype=torch.int32)
        rows = torch.tensor([0, *(r for r, _ in shapes)])
        self.cu_seqlens = rows.cumsum(0).int()

    def asked(self, function: Any = attend_pages, **how: Any) -> Tensor:
        made: Tensor = function(
            self.q, *self.caches, self.table, self.context, self.cu_seqlens, **how
        )
        return made

    def expected(self, sinks: Tensor | None, **how: Any) -> Array:
        q = self.q.double().split(self.cu_seqlens.diff().tolist())
        nothing = None if sinks is None else sinks.double().numpy()
        made = [
            formula(q.numpy(), k.double().numpy(), v.double().numpy(), nothing, **how)
            for q, k, v in zip(q, self.k, self.v, strict=True)
        ]
        return np.concatenate(made).reshape(self.q.flatten(1).shape)


SHAPES = st.tuples(st.integers(0, 40), st.integers(0, 300)).map(lambda x: (x[0], sum(x)))
"""Rows of a step, and all of the context: a decode, a first chunk, a later one."""


@pytest.mark.parametrize("which", [*SETS, None])
@settings(max_examples=50, deadline=None)
@given(
    shapes=st.lists(SHAPES | st.just((1, 33)) | st.just((2, 1200)), min_size=1, max_size=5),
    kv=st.integers(1, 3),
    groups=st.integers(1, 5),
    head=st.sampled_from([1, 5, 8, 20, 64, 80, 130]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    window=st.none() | st.integers(1, 200),
    scale=st.sampled_from([None, 0.3]),
    softcap=st.sampled_from([None, 3.0]),
    has_sinks=st.booleans(),
)
def test_it_computes_its_formula(
    which: int | None,
    shapes: list[tuple[int, int]],
    kv: int,
    groups: int,
    head: int,
    dtype: torch.dtype,
    has_sinks: bool,
    **how: Any,
) -> None:
    filled = Filled(shapes, kv, groups, head, dtype)
    sinks = torch.randn(kv * groups) if has_sinks else None
    attend = attend_pages_reference if which is None else attend_pages
    with computed_by(which or 0):
        found = filled.asked(attend, sinks=sinks, **how)
    assert found.dtype == dtype
    limit = 2e-5 if dtype is torch.float32 else 2e-2
    np.testing.assert_allclose(found.float(), filled.expected(sinks, **how), rtol=limit, atol=limit)


@pytest.mark.parametrize("window", [130, None])
def test_a_sequence_has_the_same_bits_in_any_company(window: int | None) -> None:
    shapes = [(1, 40), (7, 300), (1, 1300), (33, 33), (2, 257)]
    filled = Filled(shapes, 2, 3, 20, torch.float32)
    together = filled.asked(window=window).split([rows for rows, _ in shapes])
    rows = filled.q.split([rows for rows, _ in shapes])
    for n, (q, table, context) in enumerate(zip(rows, filled.table, filled.context, strict=True)):
        for row in range(len(q)):  # Alone, as if it had been decoded.
            alone = attend_pages(
                q[row : row + 1],
                *filled.caches,
                table[None],
                context[None] - len(q) + row + 1,
                torch.tensor([0, 1]),
                window=window,
            )
            assert torch.equal(alone[0], together[n][row])


def test_blocks_behind_the_window_may_be_gone() -> None:
    filled = Filled([(3, 100)], 1, 1, 8, torch.float32)
    wanted = filled.asked(window=20)
    filled.table[0, : (100 - 3 + 1 - 20) // BLOCK] = -1
    assert torch.equal(filled.asked(window=20), wanted)
    with pytest.raises(ValueError, match="block_table names no block of the cache"):
        filled.asked(window=40)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("table", [[0, 99]], "block_table names no block"),
        ("table", [[0]], "longer than its table"),
        ("context", [2], "shorter than its rows"),
        ("context", [20, 20], "a kernel takes 1 numbers of torch.int32"),
        ("cu_seqlens", [0, 2], "does not begin at 0 and end with the rows of q"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, value: Any, text: str) -> None:
    filled = Filled([(3, 20)], 1, 1, 8, torch.float32)
    setattr(filled, name, torch.tensor(value, dtype=torch.int32))
    with pytest.raises(ValueError, match=text):
        filled.asked()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_store_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    k, v = torch.randn(2, 3, 50, 20).to(dtype).transpose(1, 2)  # As attention has them.
    places, caches = torch.randperm(8 * BLOCK)[:50], []
    for native in (paged.kernels, None):
        monkeypatch.setattr(paged, "kernels", native)
        caches.append(new_cache(8, 3, 20, dtype, torch.device("cpu")))
        store(k, v, *caches[-1], places)
        for wrong in (-1 - 8 * BLOCK, 8 * BLOCK):
            with pytest.raises(IndexError):
                store(k[:1], v[:1], *caches[-1], torch.tensor([wrong]))
    assert all(map(torch.equal, *caches))
