"""Attention over packed sequences: each row attends to the rows of its own sequence only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .numerics import widened


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Bidirectional softmax attention, sequence by sequence, without padding.

    Args:
        q, k, v: [tokens, heads, head size].
        lengths: rows of each sequence; they sum to `tokens`.

    Returns:
        [tokens, heads x head size].
    """
    dtype = q.dtype
    if widened(q):
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    outputs = [
        F.scaled_dot_product_attention(q_i[None], k_i[None], v_i[None])[0].transpose(0, 1)
        for q_i, k_i, v_i in zip(*(torch.split(x, lengths, dim=1) for x in (q, k, v)), strict=True)
    ]
    packed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return packed.flatten(1).to(dtype)
