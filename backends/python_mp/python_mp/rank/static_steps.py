"""Steps of generation for CUDA graphs: the latest row of each sequence, by bucket of sequences.
Those that fill a bucket write to a spare block, and read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ..model.batch import CU_SEQLENS
from ..model.request import Array
from ..sharding.kv_pages import BLOCK
from ..sharding.running import CONTEXTS, PLACES, POSITIONS, TABLE, KvCache, Running
from ..sharding.sequences import StaticSequences
from .cuda import Cuda
from .device import CPU, GRAPHS
from .graphs import Given
from .staging import Block

IDS = "INPUT_IDS"
_FIRST = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
_STEP = 64
"""From 64 sequences on. Those that fill a bucket cost little: a step reads weights most of all."""


class StaticSteps:
    """
    Args:
        cache: with a block behind those of the sequences.
        most_sequences: of a step.
        context: tokens of the longest sequence.
    """

    share = GRAPHS

    def __init__(self, cuda: Cuda, cache: KvCache, most_sequences: int, context: int) -> None:
        self._cuda, self._cache = cuda, cache
        self._sizes = sizes(most_sequences)
        self._width = -(-context // BLOCK)
        largest, ints = self._sizes[-1], np.dtype(np.int32)
        self._rows = Block(
            [
                *((name, ints, (largest,)) for name in (IDS, CONTEXTS, POSITIONS)),
                (PLACES, np.dtype(np.int64), (largest,)),
                (CU_SEQLENS, ints, (largest + 1,)),
            ]
        )
        self._memory = cuda.memory(self._rows.nbytes)
        self._tables = cuda.memory(largest * self._width * ints.itemsize).view(torch.int32)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sizes)

    def bucket(self, given: Given) -> int | None:
        inputs = given.inputs
        if TABLE not in inputs:
            return None
        count, width = inputs[TABLE].shape
        if not len(inputs[IDS]) == count == len(inputs["sampled"]) or width > self._width:
            return None
        return next((size for size in self._sizes if size >= count), None)

    def keep(self, given: Given) -> None:
        """Its blocks may be others' soon."""

    def example(self, bucket: int) -> Given:
        """Sequences that share the spare block: each sees what those before it have written."""
        count = min(bucket, BLOCK)
        inputs: dict[str, Array] = {
            IDS: np.arange(count, dtype=np.int32) % 2,
            CU_SEQLENS: np.arange(count + 1, dtype=np.int32),
            CONTEXTS: np.arange(1, count + 1, dtype=np.int32),
            TABLE: np.full((count, 1), self._cache.blocks, np.int32),
        }
        return Given(inputs, Running(inputs, CPU, self._cache))

    def write(self, bucket: int, given: Given) -> None:
        arrays = {**given.inputs, **given.host.known()}
        count, width = arrays[TABLE].shape
        table = Block([(TABLE, np.dtype(np.int32), (bucket, width))])
        staging = self._cuda.pinned(self._rows.nbytes + table.nbytes)
        rows = self._rows.arrays(staging)
        spare = self._cache.blocks
        fill = {IDS: 0, CONTEXTS: 1, POSITIONS: 0, PLACES: spare * BLOCK}
        for name, value in fill.items():
            rows[name][:count] = arrays[name]
            rows[name][count:] = value
        rows[CU_SEQLENS][:] = np.arange(len(rows[CU_SEQLENS]))
        blocks = table.arrays(staging[self._rows.nbytes :])[TABLE]
        blocks[:count], blocks[count:] = arrays[TABLE], spare
        self._cuda.copy(self._memory, staging[: self._rows.nbytes])
        there = self._cuda.memory(table.nbytes)
        self._cuda.copy(there, staging[self._rows.nbytes :])
        self._cuda.copy(self._table(bucket)[:, :width], table.tensors(there)[TABLE])

    def batch(self, bucket: int) -> Running:
        tensors = {
            name: tensor[: bucket + 1 if name == CU_SEQLENS else bucket]
            for name, tensor in self._rows.tensors(self._memory).items()
        }
        sequences = StaticSequences(tensors[CU_SEQLENS], bucket, 1)
        tensors[TABLE] = self._table(bucket)
        return Running.static(tensors, {CU_SEQLENS: sequences}, self._cache)

    def cut(self, outputs: Mapping[str, Tensor], given: Given) -> dict[str, Tensor]:
        count = len(given.inputs[IDS])
        return {name: tensor[:count] for name, tensor in outputs.items()}

    def _table(self, bucket: int) -> Tensor:
        return self._tables.view(-1, self._width)[:bucket]


def sizes(most: int) -> list[int]:
    """Of buckets, the last one of which is `most`."""
    found = [*_FIRST, *range(_FIRST[-1] + _STEP, most, _STEP)]
    return [*(each for each in found if each < most), most]
