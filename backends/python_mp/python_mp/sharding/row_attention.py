"""Attention of packed rows by the kernel `attend_packed`, a call for the whole batch. torch's has a
call a sequence, and computes a head of a short one by general products."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .attention import Masking
from .native import address, address_of_rows, kernels
from .paged import MOST_HEAD


def takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel computes attention of these."""
    return (
        kernels is not None
        and q.device.type == "cpu"
        and q.dtype == k.dtype == v.dtype == torch.float32
        and len(q) > 0
        and k.shape == v.shape
        and k.shape[2] == q.shape[2] <= MOST_HEAD
        and q.shape[1] % k.shape[1] == 0
        and not is_compiling()
    )


def attend(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, masking: Masking, sinks: Tensor | None
) -> Tensor:
    """As `attention`, of what the kernel `takes`.

    Args:
        cu_seqlens: int32 [sequences + 1]: sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].

    Raises:
        ValueError: these are not the rows of q.
    """
    (tokens, heads, head), kv_heads = q.shape, k.shape[1]
    if len(k) != tokens:
        raise ValueError(f"{len(k)} keys for {tokens} queries")
    sinks = None if sinks is None else sinks.float().contiguous()
    q, k, v = (_in_rows(x) for x in (q, k, v))
    starts, out = cu_seqlens.int().contiguous(), q.new_empty(tokens, heads * head)
    sequences = max(len(starts) - 1, 0)
    kernels.attend_packed(
        address(out, torch.float32, tokens * heads * head),
        address_of_rows(q),
        address_of_rows(k),
        address_of_rows(v),
        address(starts, torch.int32, sequences + 1),
        address(sinks, torch.float32, heads),
        tokens,
        sequences,
        heads,
        kv_heads,
        head,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        masking.window or sys.maxsize,
        masking.causal,
        head**-0.5 if masking.scale is None else masking.scale,
        masking.softcap or 0.0,
        torch.get_num_threads(),
    )
    return out


def _in_rows(x: Tensor) -> Tensor:
    """[tokens, heads, head size], of which a token's heads lie one behind the other."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
