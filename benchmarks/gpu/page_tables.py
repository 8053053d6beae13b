"""Attention of one new token a sequence over a paged KV cache: a kernel in the Triton language.

The context is split over programs, whose parts are joined by their log-sum-exp (flash decoding).
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-incomplete-defs=False, disallow-untyped-calls=False
# ruff: noqa: N803  constants of a kernel are in capitals

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

PAGE = 16
"""Tokens."""


@triton.jit
def _partial(
    q, keys, values, table, lengths, part, lse, chunk, pages, scale,
    HEADS: tl.constexpr, KV: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    SIZE: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """A program: one sequence, one key-value head and its query heads, a part of the context."""
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    begin = split * chunk
    end = tl.minimum(begin + chunk, length)
    rows, columns, steps = tl.arange(0, ROWS), tl.arange(0, SIZE), tl.arange(0, BLOCK)
    heads = head * GROUP + rows
    real = rows < GROUP
    query = tl.load(
        q + (sequence * HEADS + heads)[:, None] * SIZE + columns[None, :],
        mask=real[:, None],
        other=0.0,
    )
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, SIZE], tl.float32)
    for first in range(begin, end, BLOCK):
        at = first + steps
        there = at < end
        page = tl.load(table + sequence * pages + at // PAGE, mask=there, other=0)
        row = (page * PAGE + at % PAGE) * KV + head
        k = tl.load(keys + row[:, None] * SIZE + columns[None, :], mask=there[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(k)) * scale
        scores = tl.where(there[None, :], scores, float("-inf"))
        top = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp(scores - top[:, None])
        shrink = tl.exp(best - top)
        v = tl.load(values + row[:, None] * SIZE + columns[None, :], mask=there[:, None], other=0.0)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        best = top
    some = total > 0
    acc = tl.where(some[:, None], acc / tl.where(some, total, 1.0)[:, None], 0.0)
    where = (sequence * HEADS + heads) * SPLITS + split
    tl.store(part + where[:, None] * SIZE + columns[None, :], acc, mask=real[:, None])
    tl.store(lse + where, tl.where(some, best + tl.log(total), float("-inf")), mask=real)


@triton.jit
def _join(part, lse, out, SPLITS: tl.constexpr, SIZE: tl.constexpr):
    """A program: one query head of one sequence, its parts weighted by their sums."""
    row = tl.program_id(0)
    splits, columns = tl.arange(0, SPLITS), tl.arange(0, SIZE)
    weight = tl.load(lse + row * SPLITS + splits)
    weight = tl.exp(weight - tl.max(weight, 0))
    parts = tl.load(part + (row * SPLITS + splits)[:, None] * SIZE + columns[None, :])
    joined = tl.sum(parts * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + row * SIZE + columns, joined.to(out.dtype.element_ty))


def attend(
    q: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, splits: int
) -> Tensor:
    """q [sequences, heads, size]; keys, values [pages x PAGE, kv heads, size]; table int32
    [sequences, pages]; lengths int32 [sequences], 1 or more. Returns [sequences, heads, size]."""
    sequences, heads, size = q.shape
    kv = keys.shape[1]
    chunk = -(-table.shape[1] * PAGE // splits)
    part = torch.empty(sequences, heads, splits, size, dtype=torch.float32, device=q.device)
    lse = torch.empty(sequences, heads, splits, dtype=torch.float32, device=q.device)
    out = torch.empty_like(q)
    _partial[(sequences, kv, splits)](
        q, keys, values, table, lengths, part, lse,
        chunk, table.shape[1], size**-0.5,
        HEADS=heads, KV=kv, GROUP=heads // kv, ROWS=16, SIZE=size,
        PAGE=PAGE, BLOCK=64, SPLITS=splits,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    _join[(sequences * heads,)](part, lse, out, SPLITS=splits, SIZE=size, num_warps=1)
    return out


def plain(q: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    """The same in float32, one sequence at a time."""
    out = torch.empty_like(q)
    for i, length in enumerate(lengths.tolist()):
        at = torch.arange(length, device=q.device)
        rows = table[i, at // PAGE].long() * PAGE + at % PAGE
        k, v = (x[rows].transpose(0, 1)[None].float() for x in (keys, values))
        answer = F.scaled_dot_product_attention(q[i][None, :, None].float(), k, v, enable_gqa=True)
        out[i] = answer[0, :, 0]
    return out
