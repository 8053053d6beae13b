"""A step of generation: rows of sequences whose earlier rows have left keys and values behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..model.errors import LoadError
from ..model.request import Array
from . import paged
from .kv_pages import BLOCK, Pages, block_bytes, new_cache
from .packed import Packed
from .sequences import Sequences

CONTEXTS, TABLE = "context_lengths", "block_table"
POSITIONS, PLACES = "positions", "places"
"""int32 and int64 [tokens]: each row's place in its sequence, and in the cache."""


@dataclass(frozen=True)
class Heads:
    """What one layer keeps of a token: keys and values, of so many heads of this size."""

    count: int
    size: int
    dtype: torch.dtype

    @property
    def block_nbytes(self) -> int:
        return block_bytes(self.count, self.size, self.dtype)


class KvCache:
    """Keys and values of a stage's layers, of this rank's heads. What its layers keep it learns of
    a first batch; then it is opened."""

    def __init__(self) -> None:
        self.heads: list[Heads] = []
        self.blocks = 0
        self._layers: list[tuple[Tensor, Tensor]] = []

    @property
    def block_nbytes(self) -> int:
        """Of 16 tokens in all layers."""
        return sum(each.block_nbytes for each in self.heads)

    def note(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Raises LoadError where a layer keeps what pages cannot hold."""
        if k.shape != v.shape:
            raise LoadError(
                f"layer {layer} has keys of {k.shape[2]} numbers and values of {v.shape[2]}: a"
                " cache has both of one size"
            )
        self.heads[layer:] = [Heads(k.shape[1], k.shape[2], k.dtype)]

    def open(self, blocks: int, device: torch.device, *, spare: int = 0) -> None:
        """Takes pages for so many blocks of 16 tokens, and for spare ones behind them, which are no
        sequence's."""
        self._layers = [
            new_cache(blocks + spare, each.count, each.size, each.dtype, device)
            for each in self.heads
        ]
        self.blocks = blocks

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Raises LoadError where the first batch has not had so many."""
        if number >= len(self._layers):
            raise LoadError(f"the module called attention more than {number} times, and once less")
        return self._layers[number]


class Running(Packed):
    """A batch whose sequences go on: `attend` keeps each layer's keys and values in `cache`, and
    sees all that the sequences have there. Its tensors are those of a batch, and

    context_lengths: int32 [sequences], a sequence's rows in the cache once this step is done.
    block_table: int32 [sequences, width], the blocks they lie in, -1 behind the last one.

    A batch without a block table is computed for itself, and tells the cache what layers keep.
    """

    def __init__(
        self,
        inputs: Mapping[str, Array],
        device: torch.device,
        cache: KvCache,
        *,
        shared: bool = False,
    ) -> None:
        super().__init__(inputs, device, shared=shared)
        self._cache = cache
        self._calls = 0
        self.host = self
        """The same step where its numbers can be read without waiting."""

    def known(self) -> dict[str, Array]:
        if TABLE not in self:
            return {}
        return {POSITIONS: self.positions.numpy(), PLACES: self._places.numpy()}

    def moved(self, tensors: dict[str, Tensor]) -> Running:
        batch = self.static(tensors, self._lengths(tensors), self._cache)
        batch.host = self
        return batch

    @classmethod
    def static(
        cls, tensors: dict[str, Tensor], sequences: dict[str, Sequences], cache: KvCache
    ) -> Running:
        """A step whose tensors lie on the device already; see `placed`."""
        device = next(iter(tensors.values())).device
        return Running({}, device, cache)._filled(tensors, sequences)

    @property
    def contexts(self) -> list[int]:
        lengths: list[int] = self[CONTEXTS].tolist() if CONTEXTS in self else self.lengths
        return lengths

    @cached_property
    def positions(self) -> Tensor:
        """int32 [tokens]: each row's place in its sequence."""
        if POSITIONS in self:
            return self[POSITIONS]
        if CONTEXTS not in self:
            return super().positions
        rows = self.cu_seqlens
        before = torch.repeat_interleave(self[CONTEXTS] - rows[1:], rows.diff())
        return torch.arange(len(before), dtype=torch.int32, device=before.device) + before

    @cached_property
    def _places(self) -> Tensor:
        """int64 [tokens]: each row's place in the cache."""
        if PLACES in self:
            return self[PLACES]
        numbers = torch.arange(len(self[TABLE]), device=self.positions.device)
        sequence = torch.repeat_interleave(numbers, self.cu_seqlens.diff())
        block = self[TABLE][sequence, self.positions // BLOCK].long()
        return block * BLOCK + self.positions % BLOCK

    @property
    def pages(self) -> Pages | None:
        """Where its rows go and what they see; None where it is computed for itself."""
        if TABLE not in self:
            return None
        return Pages(self._places, self[TABLE], self[CONTEXTS], self.cu_seqlens)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        """As `Sequences.attend`; layers are told apart by the order of the calls.

        Raises:
            LoadError: rows see later ones, or scores are made of a whole sequence's length.
        """
        layer, self._calls = self._calls, self._calls + 1
        if not how.pop("causal", False) or how.pop("bias", None) is not None:
            raise LoadError(
                "the module's attention is not causal, or adds a bias to its scores: it cannot"
                " generate text here"
            )
        if TABLE not in self:
            self._cache.note(layer, k, v)
            return super().attend(q, k, v, causal=True, **how)
        pages = self._cache.layer(layer)
        paged.store(k, v, *pages, self._places)
        return paged.attend_pages(q, *pages, self[TABLE], self[CONTEXTS], self.cu_seqlens, **how)
