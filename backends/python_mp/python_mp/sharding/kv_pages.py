"""Pages of a KV cache: blocks of 16 tokens, found through each sequence's table.

Only this module and the kernels know how a block lies in memory: keys [kv heads, head size, 16], so
that a vector holds 16 tokens' keys, and values [kv heads, 16, head size], each row filled up to
whole vectors. On a GPU keys lie as values do, and are shown the other way around.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .native import address

BLOCK = 16
"""Tokens of a block."""
ALIGNMENT = 64
"""Bytes, as of torch's own tensors."""


class Pages(NamedTuple):
    """What `store` and `attend_pages` are told of a step, the same for all layers."""

    places: Tensor
    table: Tensor
    contexts: Tensor
    cu_seqlens: Tensor

    @classmethod
    def none(cls, cu_seqlens: Tensor) -> Pages:
        """Of sequences that leave nothing behind."""
        nothing = torch.empty(0)
        return cls(nothing, nothing, nothing, cu_seqlens)

    @property
    def width(self) -> int:
        """Blocks of a sequence, at most."""
        return self.table.shape[1] if self.table.dim() == 2 else 0


def new_cache(
    blocks: int, kv_heads: int, head: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Zeros: the keys' and the values' pages of one layer, to be handed to `store` and
    `attend_pages`. They take `block_bytes` a block, of a processor's memory once it is written."""
    if device.type != "cpu":
        return gpu_cache(blocks, kv_heads, head, dtype, device)
    keys = _zeros((blocks, kv_heads, head, BLOCK), dtype)
    return keys, _zeros((blocks, kv_heads, BLOCK, filled(head)), dtype)


def gpu_cache(
    blocks: int, kv_heads: int, head: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The same as it lies on a GPU, whose kernels read the numbers of a head side by side."""
    keys = torch.zeros((blocks, kv_heads, BLOCK, head), dtype=dtype, device=device)
    values = torch.zeros((blocks, kv_heads, BLOCK, filled(head)), dtype=dtype, device=device)
    return keys.transpose(2, 3), values


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """torch would write them, and so take all of the memory at once; the kernel has pages of
    zeros."""
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % ALIGNMENT
    return torch.from_numpy(raw[begin : begin + nbytes]).view(dtype).view(shape)


def block_bytes(kv_heads: int, head: int, dtype: torch.dtype) -> int:
    """Of one layer's keys and values of 16 tokens."""
    return kv_heads * BLOCK * (head + filled(head)) * dtype.itemsize


def filled(head: int) -> int:
    return -(-head // BLOCK) * BLOCK


def addresses(k_cache: Tensor, v_cache: Tensor) -> tuple[int, int]:
    """Of pages as `new_cache` makes them."""
    (blocks, kv_heads, head, _), row = k_cache.shape, v_cache.shape[3]
    if row != filled(head):
        raise ValueError(f"pages of values of {row} numbers for heads of {head}")
    dtype, sides = k_cache.dtype, blocks * kv_heads * BLOCK
    return address(k_cache, dtype, sides * head), address(v_cache, dtype, sides * row)
