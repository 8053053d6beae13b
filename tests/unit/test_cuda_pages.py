"""The kernels for GPUs against the reference, where the Triton language is: on a GPU, or without
one in the language's interpreter."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from python_mp.sharding.attention import Masking
from python_mp.sharding.kv_pages import BLOCK, gpu_cache
from python_mp.sharding.paged_reference import attend_pages_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not find_spec("triton"), reason="there is no Triton language: no pip triton"
    ),
]
if find_spec("triton"):
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    from python_mp.sharding import cuda_pages
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LIMIT = {torch.float32: 2e-5, torch.float16: 4e-3}
if torch.cuda.is_available():  # The interpreter has no bfloat16.
    LIMIT[torch.bfloat16] = 3e-2

CHUNK = st.tuples(st.integers(1, 30), st.integers(0, 90)).map(lambda x: (x[0], sum(x)))
DECODE = st.integers(1, 200).map(lambda context: (1, context))
"""Rows of a step, and all of the context."""


@settings(max_examples=12, deadline=None)
@given(
    shapes=st.lists(DECODE, min_size=1, max_size=5) | st.lists(CHUNK, min_size=1, max_size=4),
    kv=st.integers(1, 3),
    group=st.sampled_from([1, 3, 4, 17]),
    head=st.sampled_from([8, 20, 64, 80]),
    dtype=st.sampled_from(list(LIMIT)),
    window=st.none() | st.integers(1, 200),
    scale=st.sampled_from([None, 0.3]),
    softcap=st.sampled_from([None, 3.0]),
    has_sinks=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_they_compute_what_the_reference_does(
    shapes: list[tuple[int, int]],
    kv: int,
    group: int,
    head: int,
    dtype: torch.dtype,
    has_sinks: bool,
    seed: int,
    **how: Any,
) -> None:
    torch.manual_seed(seed)
    rows, contexts = ([each[n] for each in shapes] for n in (0, 1))
    table, blocks = tables(contexts)
    caches = gpu_cache(blocks, kv, head, dtype, DEVICE)
    for cache in caches:
        cache.fill_(float("nan"))
    places = [
        table[n, at // BLOCK] * BLOCK + at % BLOCK
        for n, context in enumerate(contexts)
        for at in [torch.arange(context)]
    ]
    k, v = torch.randn(2, kv, sum(contexts), head, device=DEVICE).to(dtype).transpose(1, 2)
    cuda_pages.store(k, v, *caches, torch.cat(places).to(DEVICE))
    for cache, asked in zip(caches, (k.mT, v), strict=True):  # Nothing else was written.
        assert int(cache.isfinite().sum()) == asked.numel()
    q = torch.randn(kv * group, sum(rows), head, device=DEVICE).to(dtype).transpose(0, 1)
    starts = torch.tensor([0, *rows]).cumsum(0)
    given = q, *caches, *(x.int().to(DEVICE) for x in (table, torch.tensor(contexts), starts))
    sinks = torch.randn(kv * group, device=DEVICE) if has_sinks else None
    wanted = attend_pages_reference(*given, sinks=sinks, **how)
    for row, count, context in zip(table, rows, contexts, strict=True):
        row[: max(0, context - count + 1 - (how["window"] or context)) // BLOCK] = -1
    given = *given[:3], table.int().to(DEVICE), *given[4:]
    found = cuda_pages.attend(*given, Masking(True, **how), sinks)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=LIMIT[dtype], atol=LIMIT[dtype])


def tables(contexts: list[int]) -> tuple[torch.Tensor, int]:
    """Blocks anywhere, -1 behind the last one; and how many the cache has."""
    widths = [-(-context // BLOCK) for context in contexts]
    ids = torch.randperm(sum(widths) + 2)
    table = torch.full((len(contexts), max(widths) + 1), -1)
    for row, width in zip(table, widths, strict=True):
        row[:width], ids = ids[:width], ids[width:]
    return table, sum(widths) + 2
