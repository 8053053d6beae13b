"""Attention over packed sequences: each row attends to the rows of its own sequence only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .numerics import widened

Bias = Callable[[int], Tensor]
"""Of a sequence's length: float [heads, length, length], added to the scores."""


@dataclass(frozen=True)
class Masking:
    """Which rows see each other, and how their scores are made.

    Attributes:
        causal: row i sees row j only if j <= i.
        window: and only if |i - j| < window; None for no bound.
        scale: of the scores; None for 1 / sqrt(head size).
        softcap: scores become softcap * tanh(score / softcap), as in Gemma 2 (arXiv:2408.00118).
    """

    causal: bool = False
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None

    def mask(self, length: int, like: Tensor) -> Tensor | None:
        """Float [length, length], 0 where a row is seen and -inf where not; None if all are."""
        window = length if self.window is None else self.window
        if window >= length and not self.causal:
            return None
        place = torch.arange(length, device=like.device)
        apart = place[:, None] - place
        hidden = apart.abs() >= window
        if self.causal:
            hidden |= apart < 0
        return like.new_zeros(length, length).masked_fill_(hidden, -math.inf)


EVERYTHING = Masking()
"""Each row sees all rows of its sequence."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    masking: Masking = EVERYTHING,
    bias: Bias | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention, sequence by sequence, without padding.

    Args:
        q: [tokens, heads, head size].
        k, v: the same, or with fewer heads, each for as many heads of q (grouped queries).
        lengths: rows of each sequence; they sum to `tokens`.
        sinks: [heads], a score of nothing that each row sees as well (arXiv:2309.17453).

    Returns:
        [tokens, heads x head size].
    """
    dtype = q.dtype
    if widened(q):
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    if len(lengths) == 1:
        return _one(q, k, v, masking, bias, sinks).transpose(0, 1).flatten(1).to(dtype)
    rows = (x.split_with_sizes(lengths, 1) for x in (q, k, v))
    outputs = [
        _one(q_i, k_i, v_i, masking, bias, sinks).transpose(0, 1)
        for q_i, k_i, v_i in zip(*rows, strict=True)
    ]
    return torch.cat(outputs).flatten(1).to(dtype)


def _one(
    q: Tensor, k: Tensor, v: Tensor, masking: Masking, bias: Bias | None, sinks: Tensor | None
) -> Tensor:
    """[heads, rows, head size], of one sequence."""
    length, is_fused = q.shape[1], masking.softcap is None and sinks is None
    added = None if bias is None else bias(length).to(q.dtype)
    is_narrow = (masking.window or length) < length
    plainly_causal = masking.causal and not is_narrow and added is None and is_fused
    mask = None if plainly_causal else masking.mask(length, q)
    if added is not None:
        mask = added if mask is None else mask + added
    if not is_fused:
        groups = q.shape[0] // k.shape[0]
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        return step_by_step(q, k, v, masking, mask, sinks)
    return F.scaled_dot_product_attention(
        q[None],
        k[None],
        v[None],
        attn_mask=mask,
        is_causal=plainly_causal,
        scale=masking.scale,
        enable_gqa=q.shape[0] != k.shape[0],
    )[0]


def step_by_step(
    q: Tensor, k: Tensor, v: Tensor, masking: Masking, mask: Tensor | None, sinks: Tensor | None
) -> Tensor:
    """What torch has no fused kernel for. The mask is added to the capped scores.

    q, k, v: [..., heads, rows, head size], of as many heads each.
    """
    scale = q.shape[-1] ** -0.5 if masking.scale is None else masking.scale
    scores = q @ k.transpose(-2, -1) * scale
    if masking.softcap is not None:
        scores = torch.tanh(scores / masking.softcap) * masking.softcap
    if mask is not None:
        scores = scores + mask
    if sinks is None:
        return scores.softmax(-1) @ v
    of_nothing = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, of_nothing], -1).softmax(-1)[..., :-1] @ v
