"""Attention over packed rows on a GPU, by the kernels that torch has for it.

Nothing here asks the GPU for a number, so that all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .attention import Masking

_MOST_HEAD_SIZE = 256
_FLASH = (torch.float16, torch.bfloat16)
_NO_MASK, _CAUSAL = 0, 1


def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, masking: Masking
) -> Tensor | None:
    """Softmax attention of each row to the rows of its sequence.

    Args:
        q: [tokens, heads, head size].
        k, v: the same, or with fewer heads, each for as many heads of q.
        cu_seqlens: int32 [sequences + 1]; rows behind the last sequence get any numbers.
        longest: rows of a sequence, at most.

    Returns:
        [tokens, heads x head size]; None where torch has no kernel that does it.
    """
    window = masking.window if masking.window is not None and masking.window < longest else None
    if masking.softcap is not None:
        return None
    if q.dtype in _FLASH and _fits_flash(q, v):
        return _flash(q, k, v, cu_seqlens, longest, masking, window)
    if window is None:
        return _memory_efficient(q, k, v, cu_seqlens, longest, masking)
    return None


def _fits_flash(q: Tensor, v: Tensor) -> bool:
    size = q.shape[-1]
    return (
        size % 8 == 0 and size <= _MOST_HEAD_SIZE and v.shape[-1] == size and _has_flash(q.device)
    )


@cache
def _has_flash(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    masking: Masking,
    window: int | None,
) -> Tensor:
    """16-bit only (arXiv:2307.08691)."""
    before = -1 if window is None else window - 1
    found: Tensor = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        0.0,
        masking.causal and window is None,
        False,
        scale=masking.scale,
        window_size_left=before,
        window_size_right=0 if masking.causal else before,
    )[0]
    return found.flatten(1)


def _memory_efficient(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, masking: Masking
) -> Tensor:
    """Of any float dtype (arXiv:2112.05682)."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    found: Tensor = torch.ops.aten._efficient_attention_forward(
        q[None],
        k[None],
        v[None],
        None,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        0.0,
        _CAUSAL if masking.causal else _NO_MASK,
        False,
        scale=masking.scale,
    )[0]
    return found[0].flatten(1)
