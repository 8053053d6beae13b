"""What attention over pages computes, gathered and done by torch, on any device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Masking, step_by_step
from .kv_pages import BLOCK


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
