"""Attention over pages, by our kernels or by torch: see `kv_pages`."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .attention import Masking
from .kv_pages import BLOCK, addresses
from .native import address, kernels
from .paged_reference import attend_pages_reference

MOST_HEAD = 512
"""Numbers of a head that the kernel has room for."""


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
        *addresses(k_cache, v_cache),
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
    masking = Masking(True, window, scale, softcap)
    if gpu := _gpu(k_cache):
        found: Tensor = gpu.attend(*args, masking, sinks)
        return found
    if not _is_ours(q, k_cache):
        return attend_pages_reference(
            *args, window=window, scale=scale, softcap=softcap, sinks=sinks
        )
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
        *addresses(k_cache, v_cache),
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
