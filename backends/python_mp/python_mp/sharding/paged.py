"""Attention over a KV cache of pages: blocks of 16 tokens, found through each sequence's table.

Only this module and `cuda_pages` know how a block lies in memory: keys [kv heads, head size, 16],
so that a vector holds 16 tokens' keys, and values [kv heads, 16, head size], each row filled up to
whole vectors. On a GPU keys lie as values do, and are shown the other way around.
"""

from __future__ import annotations

import importlib
import math
import sys
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Masking, step_by_step
from .native import address, kernels

BLOCK = 16
"""Tokens of a block."""
ALIGNMENT = 64
"""Bytes, as of torch's own tensors."""
MOST_HEAD = 512
"""Numbers of a head that the kernel has room for."""


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


def store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, places: Tensor) -> None:
    """Writes tokens' keys and values into the cache.

    Args:
        k, v: [tokens, kv heads, head size].
        places: int64 [tokens], of each: block * 16 + its place in the block.

    Raises:
        IndexError: one is not in the cache; not on a GPU.
    """
    if gpu := _gpu(k_cache):
        gpu.store(k, v, k_cache, v_cache, places)
        return
    if _is_ours(k, k_cache) and k.dtype == v.dtype == k_cache.dtype:
        _store(k.contiguous(), v.contiguous(), k_cache, v_cache, places.contiguous())
        return
    blocks, inside = places // BLOCK, places % BLOCK
    k_cache[blocks, :, :, inside] = k.to(k_cache.dtype)
    v_cache[blocks, :, inside, : v.shape[2]] = v.to(v_cache.dtype)


def _store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, places: Tensor) -> None:
    (tokens, kv_heads, head), (blocks, row) = k.shape, v_cache.shape[::3]
    if k.shape[1:] != k_cache.shape[1:3]:
        raise ValueError(f"keys {list(k.shape)} for pages {list(k_cache.shape)}")
    kernels.store(
        *_addresses(k_cache, v_cache),
        address(k, k_cache.dtype, tokens * kv_heads * head),
        address(v, k_cache.dtype, tokens * kv_heads * head),
        address(places, torch.int64, tokens),
        tokens,
        blocks,
        kv_heads,
        head,
        row,
        k.dtype is torch.bfloat16,
    )


def _addresses(k_cache: Tensor, v_cache: Tensor) -> tuple[int, int]:
    """Of pages as `new_cache` makes them."""
    (blocks, kv_heads, head, _), row = k_cache.shape, v_cache.shape[3]
    if row != filled(head):
        raise ValueError(f"pages of values of {row} numbers for heads of {head}")
    dtype, sides = k_cache.dtype, blocks * kv_heads * BLOCK
    return address(k_cache, dtype, sides * head), address(v_cache, dtype, sides * row)


def attend_pages(
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
    """Causal attention of the last rows of sequences to all that they have in the cache, where the
    keys and values of these rows have been stored, too.

    Args:
        q: [tokens, heads, head size], rows end to end; heads are a multiple of the cache's.
        k_cache, v_cache: of `new_cache`.
        block_table: int32 [sequences, width]: token p of sequence i lies in block
            block_table[i, p // 16]. Blocks that no row sees may be -1.
        context_lengths: int32 [sequences]: tokens in the cache. Row j of r of a sequence sees the
            tokens 0 to context - r + j.
        cu_seqlens: int32 [sequences + 1]: sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].
        window, scale, softcap: see `Masking`.
        sinks: [heads], a score of nothing that each row sees as well.

    Returns:
        [tokens, heads x head size], in the dtype of q.

    Raises:
        ValueError: the table has no block where a row has to look, or the lengths do not fit;
            not on a GPU.
    """
    args = q, k_cache, v_cache, block_table, context_lengths, cu_seqlens
    if gpu := _gpu(k_cache):
        found: Tensor = gpu.attend(*args, Masking(True, window, scale, softcap), sinks)
        return found
    if not _is_ours(q, k_cache):
        return attend_pages_reference(
            *args, window=window, scale=scale, softcap=softcap, sinks=sinks
        )
    masking = Masking(True, window, scale, softcap)
    return attend_stored(*args, masking, sinks)


def _gpu(pages: Tensor) -> Any:
    """The kernels for where these lie; None for a processor."""
    return _triton_kernels() if pages.is_cuda else None


@cache
def _triton_kernels() -> Any:
    """None where torch has come without the language's compiler."""
    return importlib.import_module(".cuda_pages", __package__) if find_spec("triton") else None


def _is_ours(q: Tensor, cache: Tensor) -> bool:
    return (
        kernels is not None
        and q.device.type == "cpu"
        and cache.dtype in (torch.float32, torch.bfloat16)
        and q.shape[2] <= MOST_HEAD
    )


def attend_stored(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    contexts: Tensor,
    starts: Tensor,
    masking: Masking,
    sinks: Tensor | None,
) -> Tensor:
    """By the kernel; as `attend_pages`, but what a row sees is said by `masking`."""
    sinks = None if sinks is None else sinks.float().contiguous()
    (tokens, heads, head), (blocks, kv_heads) = q.shape, k_cache.shape[:2]
    wide, table = q.float().contiguous(), table.int().contiguous()
    contexts, starts = contexts.int().contiguous(), starts.int().contiguous()
    sequences, width = table.shape
    if heads % kv_heads or head != k_cache.shape[2]:
        raise ValueError(f"{heads} heads of {head} for pages {list(k_cache.shape)}")
    out = torch.empty_like(wide)
    kernels.attend(
        address(out, torch.float32, tokens * heads * head),
        address(wide, torch.float32, tokens * heads * head),
        *_addresses(k_cache, v_cache),
        address(table, torch.int32, sequences * width),
        address(contexts, torch.int32, sequences),
        address(starts, torch.int32, sequences + 1),
        address(sinks, torch.float32, heads),
        tokens,
        sequences,
        width,
        blocks,
        heads,
        kv_heads,
        head,
        v_cache.shape[3],
        masking.window or sys.maxsize,
        masking.causal,
        head**-0.5 if masking.scale is None else masking.scale,
        masking.softcap or 0.0,
        k_cache.dtype is torch.bfloat16,
        torch.get_num_threads(),
    )
    return out.flatten(1).to(q.dtype)


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


def filled(head: int) -> int:
    return -(-head // BLOCK) * BLOCK
