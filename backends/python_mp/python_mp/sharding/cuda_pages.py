"""Attention over pages on a GPU: kernels in the Triton language, which torch brings along.

A program computes some rows of one sequence for one head of the cache and all heads of q that share
it, over a part of the context. The parts are joined by their log-sum-exp (flash decoding,
https://crfm.stanford.edu/2023/10/12/flashdecoding.html). Nothing here asks the GPU for a number, so
that all of it can be captured in a CUDA graph.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-incomplete-defs=False, disallow-untyped-calls=False
# ruff: noqa: N803  constants of a kernel are in capitals

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import Masking

_FEW, _MANY = 16, 64
"""Rows of a product: of one token's heads, of several tokens'."""
_LEAST = 16
"""Numbers of a row that products on a GPU take."""
_PROGRAMS = 512
"""That keep a GPU busy: where there are fewer, the context is divided among more of them."""
_MOST_SPLITS = 32
_PROMPT_SPLITS = 8
"""Of few rows of prompts; of many 1. Each number is a kernel that is compiled once."""
_STEP_NBYTES = 16 << 10
"""Of keys that a program reads at a time."""


def store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, places: Tensor) -> None:
    """As `paged.store`, but places are not looked at: one that is not in the cache is written to
    memory of others."""
    k, v = _rows_of_heads(k), _rows_of_heads(v)
    rows, heads, head = k.shape
    _store[(rows, heads)](
        k, v, k_cache, v_cache, places, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        PAGE=k_cache.shape[3], HEADS=heads, HEAD=head, FILLED=v_cache.shape[3],
        SIZE=triton.next_power_of_2(head), num_warps=1,
    )  # fmt: skip


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    contexts: Tensor,
    starts: Tensor,
    masking: Masking,
    sinks: Tensor | None,
) -> Tensor:
    """As `paged.attend_pages`."""
    q = _rows_of_heads(q)
    (tokens, heads, head), (kv_heads, page) = q.shape, (k_cache.shape[1], k_cache.shape[3])
    group, sequences = heads // kv_heads, len(contexts)
    size = max(_LEAST, triton.next_power_of_2(head))
    one_each = tokens == sequences
    rows = max(triton.next_power_of_2(group), _FEW if one_each else _MANY)
    tile = 1 if one_each else rows // group
    tiles = sequences if one_each else tokens // tile + sequences
    splits = _splits(tiles * kv_heads, one_each)
    parts = q.new_empty((tokens, heads, splits, head), dtype=torch.float32)
    sums = parts.new_empty((tokens, heads, splits))
    out = q.new_empty((tokens, heads, head))
    _attend[(tiles, kv_heads, splits)](
        q, k_cache, v_cache, table, contexts, starts, parts, sums,
        q.stride(0), q.stride(1), table.stride(0), sequences,
        head**-0.5 if masking.scale is None else masking.scale,
        masking.softcap or 0.0, masking.window or 0, sequences.bit_length(),
        PAGE=page, KV=kv_heads, GROUP=group, HEAD=head, FILLED=v_cache.shape[3], SIZE=size,
        ROWS=rows, TILE=tile, STEP=_step(size * q.element_size()), SPLITS=splits,
        ONE_EACH=one_each,
        CAPPED=masking.softcap is not None, WINDOWED=masking.window is not None,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    _join[(tokens * heads,)](
        parts, sums, out if sinks is None else sinks, out,
        HEADS=heads, HEAD=head, SIZE=size, SPLITS=splits, SINKS=sinks is not None, num_warps=1,
    )  # fmt: skip
    return out.flatten(1)


def _rows_of_heads(x: Tensor) -> Tensor:
    """Whose heads' numbers lie side by side; heads and rows may lie anywhere."""
    return x if x.stride(2) == 1 else x.contiguous()


def _splits(programs: int, one_each: bool) -> int:
    """A power of two, as `_join` needs it."""
    few = max(1, _PROGRAMS // max(programs, 1))
    if not one_each:
        return _PROMPT_SPLITS if few >= _PROMPT_SPLITS else 1
    return int(min(_MOST_SPLITS, 1 << few.bit_length() - 1))


def _step(token_nbytes: int) -> int:
    return int(min(64, max(16, _STEP_NBYTES // token_nbytes)))


@triton.jit
def _store(
    k, v, k_cache, v_cache, places, k_row, k_head, v_row, v_head,
    PAGE: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, FILLED: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """A program: one head of one row."""
    row, head = tl.program_id(0), tl.program_id(1)
    place = tl.load(places + row)
    to = (place // PAGE * HEADS + head) * PAGE + place % PAGE
    column = tl.arange(0, SIZE)
    real = column < HEAD
    key = tl.load(k + row.to(tl.int64) * k_row + head * k_head + column, mask=real)
    value = tl.load(v + row.to(tl.int64) * v_row + head * v_head + column, mask=real)
    tl.store(k_cache + to * HEAD + column, key.to(k_cache.dtype.element_ty), mask=real)
    tl.store(v_cache + to * FILLED + column, value.to(v_cache.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["width", "sequences", "window", "search"])
def _attend(
    q, k_cache, v_cache, table, contexts, starts, parts, sums,
    q_row, q_head, width, sequences, scale, cap, window, search,
    PAGE: tl.constexpr, KV: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr,
    FILLED: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, SPLITS: tl.constexpr, ONE_EACH: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Each sequence has a tile for each TILE of its rows, and one more where that is not even."""
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = tile
    if not ONE_EACH:  # The last sequence that begins at this tile or before.
        sequence = 0
        above = sequences
        for _ in range(search):
            middle = (sequence + above) // 2
            is_before = tl.load(starts + middle) // TILE + middle <= tile
            sequence = tl.where(is_before, middle, sequence)
            above = tl.where(is_before, above, middle)
    start = tl.load(starts + sequence)
    rows = tl.load(starts + sequence + 1) - start
    context = tl.load(contexts + sequence)
    first = 0
    if not ONE_EACH:
        first = (tile - start // TILE - sequence) * TILE
    index, column, step = tl.arange(0, ROWS), tl.arange(0, SIZE), tl.arange(0, STEP)
    row, mine = first + index // GROUP, head * GROUP + index % GROUP
    is_row = (index < TILE * GROUP) & (row < rows)
    is_column = (column < HEAD)[None, :]
    asks = (start + row).to(tl.int64)
    query = tl.load(
        q + asks[:, None] * q_row + mine[:, None] * q_head + column[None, :],
        mask=is_row[:, None] & is_column,
        other=0.0,
    )
    place = context - rows + row
    least, high = 0, context - rows + tl.minimum(rows, first + TILE)
    if WINDOWED:  # What lies before may have no block any more.
        least = tl.maximum(0, context - rows + first - window + 1)
    low = least // STEP * STEP
    share = tl.cdiv(tl.cdiv(high - low, STEP), SPLITS) * STEP
    begin = low + split * share
    end = tl.minimum(begin + share, high)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, SIZE], tl.float32)
    for at_first in range(begin, end, STEP):
        at = at_first + step
        there = (at >= least) & (at < end)
        block = tl.load(table + sequence * width + at // PAGE, mask=there, other=0).to(tl.int64)
        slot = (block * KV + head) * PAGE + at % PAGE
        is_there = there[:, None] & is_column
        k = tl.load(k_cache + slot[:, None] * HEAD + column[None, :], mask=is_there, other=0.0)
        scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
        if CAPPED:  # By tanh.
            scores = cap * (2 / (1 + tl.exp(-2 * scores / cap)) - 1)
        seen = there[None, :] & (at[None, :] <= place[:, None])
        if WINDOWED:
            seen = seen & (place[:, None] - at[None, :] < window)
        scores = tl.where(seen, scores, float("-inf"))
        top = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(top > float("-inf"), top, 0.0)  # A row may have seen nothing yet.
        weights = tl.exp(scores - base[:, None])
        shrink = tl.exp(best - base)
        v = tl.load(v_cache + slot[:, None] * FILLED + column[None, :], mask=is_there, other=0.0)
        total = total * shrink + tl.sum(weights, 1)
        found = found * shrink[:, None]
        found += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = top
    some = total > 0
    total = tl.where(some, total, 1.0)
    found = found / total[:, None]
    to = (asks * (KV * GROUP) + mine) * SPLITS + split
    tl.store(parts + to[:, None] * HEAD + column[None, :], found, mask=is_row[:, None] & is_column)
    tl.store(sums + to, tl.where(some, best + tl.log(total), float("-inf")), mask=is_row)


@triton.jit
def _join(
    parts, sums, sinks, out,
    HEADS: tl.constexpr, HEAD: tl.constexpr, SIZE: tl.constexpr, SPLITS: tl.constexpr,
    SINKS: tl.constexpr,
):  # fmt: skip
    """A program: one head of one row, its parts weighted by their sums."""
    row = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, SPLITS), tl.arange(0, SIZE)
    real = column < HEAD
    each = tl.load(sums + row * SPLITS + split)
    top = tl.max(each, 0)
    if SINKS:
        sink = tl.load(sinks + row % HEADS)
        top = tl.maximum(top, sink)
    top = tl.where(top > float("-inf"), top, 0.0)
    weight = tl.exp(each - top)
    total = tl.sum(weight, 0)
    if SINKS:
        total += tl.exp(sink - top)
    part = tl.load(
        parts + (row * SPLITS + split)[:, None] * HEAD + column[None, :],
        mask=real[None, :],
        other=0.0,
    )
    joined = tl.sum(part * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + row * HEAD + column, joined.to(out.dtype.element_ty), mask=real)
