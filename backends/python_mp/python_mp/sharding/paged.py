"""Attention over a KV cache of pages: blocks of 16 tokens, found through each sequence's table.

Only this module knows how a block lies in memory: keys [kv heads, head size, 16], so that a vector
holds 16 tokens' keys, and values [kv heads, 16, head size], each row filled up to whole vectors.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Masking, step_by_step

BLOCK = 16
"""Tokens of a block."""


def new_cache(
    blocks: int, kv_heads: int, head: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Zeros: the keys' and the values' pages of one layer, to be handed to `store` and
    `attend_pages`. They take `block_bytes` a block."""
    keys = torch.zeros(blocks, kv_heads, head, BLOCK, dtype=dtype, device=device)
    values = torch.zeros(blocks, kv_heads, BLOCK, _filled(head), dtype=dtype, device=device)
    return keys, values


def block_bytes(kv_heads: int, head: int, dtype: torch.dtype) -> int:
    """Of one layer's keys and values of 16 tokens."""
    return kv_heads * BLOCK * (head + _filled(head)) * dtype.itemsize


def store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, places: Tensor) -> None:
    """Writes tokens' keys and values into the cache.

    Args:
        k, v: [tokens, kv heads, head size].
        places: int64 [tokens], of each: block * 16 + its place in the block.
    """
    blocks, inside = places // BLOCK, places % BLOCK
    k_cache[blocks, :, :, inside] = k.to(k_cache.dtype)
    v_cache[blocks, :, inside, : v.shape[2]] = v.to(v_cache.dtype)


def attend_pages_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lengths: Tensor,
    cu_seqlens: Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """What `attend_pages` computes, gathered and done by torch in float32, on any device."""
    rows = q.split_with_sizes(cu_seqlens.diff().tolist())
    masking = Masking(True, window, scale, softcap)
    outputs = [q.new_zeros(0, q.shape[1], q.shape[2])]
    for q_i, table, length in zip(rows, block_table, context_lengths.tolist(), strict=True):
        ids = table[: -(-length // BLOCK)].long()
        k = k_cache[ids].permute(1, 0, 3, 2).flatten(1, 2)[:, :length]
        v = v_cache[ids].transpose(0, 1).flatten(1, 2)[:, :length, : q.shape[2]]
        apart = torch.arange(length - len(q_i), length, device=q.device)[:, None]
        apart = apart - torch.arange(length, device=q.device)
        seen = (apart >= 0) & (apart < (window or length + 1))
        outputs.append(_one(q_i.transpose(0, 1), k, v, seen, masking, sinks))
    return torch.cat(outputs).flatten(1)


def _one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    masking: Masking,
    sinks: Tensor | None,
) -> Tensor:
    """[rows, heads, head size] of one sequence; q, k, v: [heads, tokens, head size]."""
    dtype, groups = q.dtype, q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(groups, 0).float(), v.repeat_interleave(groups, 0).float()
    q = q.float()
    mask = q.new_zeros(seen.shape).masked_fill_(~seen, -math.inf)
    if masking.softcap is None and sinks is None:
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=masking.scale)
    else:
        made = step_by_step(q, k, v, masking, mask, sinks)
    return made.transpose(0, 1).to(dtype)


attend_pages = attend_pages_reference


def _filled(head: int) -> int:
    return -(-head // BLOCK) * BLOCK
