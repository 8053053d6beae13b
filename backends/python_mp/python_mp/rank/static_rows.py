"""Packed rows for CUDA graphs, by bucket of rows, of sequences and of the longest one. The rows
that fill a bucket belong to no sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from ..model.batch import CU_SEQLENS
from ..model.config import ModelConfig
from ..model.errors import InvalidInput
from ..model.request import Array
from ..sharding.packed import Packed
from ..sharding.sequences import StaticSequences
from ..sharding.source import Check
from .buckets import Bucket, Buckets
from .cuda import Cuda
from .device import CPU
from .graphs import Given
from .staging import Block


def possible(config: ModelConfig) -> bool:
    """Whether a batch has one number of rows, and all its rows one shape."""
    ragged = [spec for spec in config.inputs if spec.ragged]
    return (
        config.world_size == 1
        and len(config.groups) == 1
        and bool(ragged)
        and all(-1 not in spec.row for spec in config.inputs if not spec.optional)
    )


class StaticRows:
    """
    Args:
        check: raises InvalidInput for a batch that cannot be computed.
    """

    share = 0.1

    def __init__(self, cuda: Cuda, config: ModelConfig, check: Check | None) -> None:
        self._cuda, self._check = cuda, check
        self._specs = [
            spec for spec in config.inputs if spec.name in config.batch_inputs and not spec.optional
        ]
        self._names = {CU_SEQLENS, *(spec.name for spec in self._specs)}
        self._ragged = {s.name for s in (*config.inputs, *config.outputs) if s.ragged}
        self._least = max(1, config.parameters.min_sequence_length)
        self._buckets = Buckets(config.parameters.max_batch_tokens)
        self._blocks = {each: self._block(each) for each in self._buckets}
        self._memory = cuda.memory(max(block.nbytes for block in self._blocks.values()))

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets)

    def bucket(self, given: Given) -> Bucket | None:
        lengths = given.host.lengths
        if given.inputs.keys() != self._names:
            return None
        return self._buckets.of(sum(lengths), len(lengths), max(lengths, default=0))

    def keep(self, given: Given) -> Given:
        return _given({name: array.copy() for name, array in given.inputs.items()})

    def example(self, bucket: Bucket) -> Given | None:
        """Zeros, in sequences of several lengths."""
        lengths, left = [self._least + bucket.shorter], bucket.rows - self._least - bucket.shorter
        while left >= self._least and len(lengths) < bucket.sequences:
            lengths.append(min(left, self._least + len(lengths) % 7))
            left -= lengths[-1]
        shape = {True: sum(lengths), False: len(lengths)}
        zeros = {s.name: np.zeros((shape[s.ragged], *s.row), s.dtype) for s in self._specs}
        found = _given({**zeros, CU_SEQLENS: np.cumsum([0, *lengths], dtype=np.int32)})
        return found if self._is_right(found) else None

    def _is_right(self, given: Given) -> bool:
        try:
            if self._check:
                self._check(given.host)
        except InvalidInput:
            return False
        return True

    def write(self, bucket: Bucket, given: Given) -> None:
        block = self._blocks[bucket]
        staging = self._cuda.pinned(block.nbytes)
        for name, array in block.arrays(staging).items():
            mine = given.inputs[name]
            array[: len(mine)] = mine
            array[len(mine) :] = mine[-1] if name == CU_SEQLENS else 0
        self._cuda.copy(self._memory[: block.nbytes], staging)

    def batch(self, bucket: Bucket) -> Packed:
        tensors = self._blocks[bucket].tensors(self._memory)
        sequences = StaticSequences(tensors[CU_SEQLENS], bucket.rows, bucket.longest)
        return Packed.placed(tensors, {CU_SEQLENS: sequences})

    def cut(self, outputs: Mapping[str, Tensor], given: Given) -> dict[str, Tensor]:
        lengths = given.host.lengths
        rows, sequences = sum(lengths), len(lengths)
        return {
            name: tensor[: rows if name in self._ragged else sequences]
            for name, tensor in outputs.items()
        }

    def _block(self, bucket: Bucket) -> Block:
        """Of the bucket's inputs."""
        size = {True: bucket.rows, False: bucket.sequences}
        shapes = [(s.name, np.dtype(s.dtype), (size[s.ragged], *s.row)) for s in self._specs]
        return Block([*shapes, (CU_SEQLENS, np.dtype(np.int32), (bucket.sequences + 1,))])


def _given(inputs: dict[str, Array]) -> Given:
    return Given(inputs, Packed(inputs, CPU))
