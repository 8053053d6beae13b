"""Attention of packed rows by the kernel for pages (`paged.py`): keys and values are put into pages
first, which takes about what a copy does. torch's has a call a sequence, and computes a head of a
short one by general products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .attention import Masking
from .native import kernels
from .paged import BLOCK, MOST_HEAD, attend_stored, filled, store


class PackedPages:
    """Pages for the keys and values of a batch's rows, of one layer after another.

    Args:
        cu_seqlens: int32 [sequences + 1]: sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].
        positions: int32 [tokens]: each row's place in its sequence.
    """

    def __init__(self, cu_seqlens: Tensor, positions: Tensor) -> None:
        lengths = cu_seqlens.diff()
        ends = ((lengths + BLOCK - 1) // BLOCK).cumsum(0)
        begins = ends - (lengths + BLOCK - 1) // BLOCK
        width = int((ends - begins).max()) if len(lengths) else 0
        self._starts, self._contexts = cu_seqlens, lengths
        self._table = (begins[:, None] + torch.arange(width)).clamp_(max=int(ends[-1]) - 1).int()
        self._places = torch.repeat_interleave(begins * BLOCK, lengths) + positions
        self._blocks = int(ends[-1])
        self._caches: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, masking: Masking, sinks: Tensor | None
    ) -> Tensor:
        """As `attention`, of float32."""
        keys, values = self._cache(*k.shape[1:])
        store(k, v, keys, values, self._places)
        seen = self._table, self._contexts, self._starts
        return attend_stored(q, keys, values, *seen, masking, sinks)

    def _cache(self, heads: int, head: int) -> tuple[Tensor, Tensor]:
        """What lies there of the layer before is not seen: pages are written before each use."""
        if (heads, head) not in self._caches:
            keys = torch.empty(self._blocks, heads, head, BLOCK)
            values = torch.empty(self._blocks, heads, BLOCK, filled(head))
            self._caches[heads, head] = keys, values
        return self._caches[heads, head]


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
