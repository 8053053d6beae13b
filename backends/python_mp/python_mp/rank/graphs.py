"""A module's work as CUDA graphs: what the host says once, the GPU does again without it.

A batch is filled up to the size of a bucket. The rows that fill it belong to no sequence, and
nobody reads what becomes of them. Graphs are captured between batches, first for what came and had
none. One whose numbers are not those that the module computes without it, ends all: then the module
does something that no graph can repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.batch import CU_SEQLENS
from ..model.config import ModelConfig
from ..model.errors import InvalidInput, describe
from ..model.request import Array
from ..sharding.packed import Packed
from ..sharding.sequences import StaticSequences
from ..sharding.source import Check
from .buckets import Bucket, Buckets
from .device import CPU, CudaDevice
from .staging import Block

log = logging.getLogger(__name__)

Forward = Callable[[Packed], Mapping[str, Tensor]]
_SHARE = 0.1
"""Of the GPU's memory, for all graphs."""
_MOST_ERROR = 0.05
"""Of a graph's numbers against the module's, in the norm: other kernels round otherwise."""


def possible(config: ModelConfig) -> bool:
    """Whether a batch has one number of rows, and all its rows one shape."""
    ragged = [spec for spec in config.inputs if spec.ragged]
    return (
        config.world_size == 1
        and len(config.groups) == 1
        and bool(ragged)
        and all(-1 not in spec.row for spec in config.inputs if not spec.optional)
    )


class Graph:
    """One bucket's."""

    def __init__(self, bucket: Bucket, block: Block, replay: Callable[[], None], outputs: Any):
        self.bucket, self.block, self.replay, self.outputs = bucket, block, replay, outputs


class Graphs:
    """
    Args:
        forward: the module's work, to the outputs.
        check: raises InvalidInput for a batch that cannot be computed.
    """

    def __init__(
        self, device: CudaDevice, config: ModelConfig, forward: Forward, check: Check | None
    ) -> None:
        self._device, self._forward, self._check = device, forward, check
        self._cuda = cuda = device.cuda
        self._specs = [
            spec for spec in config.inputs if spec.name in config.batch_inputs and not spec.optional
        ]
        self._names = {CU_SEQLENS, *(spec.name for spec in self._specs)}
        self._ragged = {s.name for s in (*config.inputs, *config.outputs) if s.ragged}
        self._least = max(1, config.parameters.min_sequence_length)
        self._buckets = Buckets(config.parameters.max_batch_tokens)
        self._graphs: dict[Bucket, Graph] = {}
        self._wanted: tuple[Bucket, dict[str, Array]] | None = None
        self._rest: Iterator[Bucket] | None = iter(self._buckets)
        self._memory = cuda.memory(max(self._block(each).nbytes for each in self._buckets))
        self._before = cuda.reserved()

    def run(self, inputs: Mapping[str, Array], lengths: list[int]) -> dict[str, Tensor] | None:
        """The outputs, which are there when the GPU has come so far; None where there is no graph
        for such a batch, yet."""
        bucket = self._buckets.of(sum(lengths), len(lengths), max(lengths, default=0))
        if bucket is None or inputs.keys() != self._names:
            return None
        graph = self._graphs.get(bucket)
        if graph is None:
            if self._rest is not None and self._wanted is None:
                self._wanted = bucket, {name: array.copy() for name, array in inputs.items()}
            return None
        return self._replay(graph, inputs, sum(lengths), len(lengths))

    def improve(self) -> bool:
        """Captures one more graph; False where there is nothing more to do."""
        if self._rest is None:
            return False
        wanted, self._wanted = self._wanted, None
        bucket = wanted[0] if wanted else next(self._rest, None)
        if bucket is None or self._cuda.reserved() - self._before > _SHARE * self._cuda.total():
            self._rest = None
        elif bucket not in self._graphs:
            example = self._example(bucket)
            if self._is_right(example):  # Or no batch will ever want it.
                self._try(bucket, example, wanted[1] if wanted else example)
        return self._rest is not None

    def _is_right(self, example: Mapping[str, Array]) -> bool:
        try:
            if self._check:
                self._check(Packed(example, CPU))
        except InvalidInput:
            return False
        return True

    def _try(
        self, bucket: Bucket, example: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> None:
        try:
            graph = self._capture(bucket, example)
            self._compare(graph, batch)
            self._graphs[bucket] = graph
        except torch.OutOfMemoryError:  # What there is, is good.
            self._rest = None
            self._cuda.give_back()
        except Exception as error:  # Of the module, or of torch, which says it in many ways.
            log.warning("no CUDA graphs: %s", describe(error))
            self._graphs.clear()
            self._rest = None

    def _capture(self, bucket: Bucket, example: Mapping[str, Array]) -> Graph:
        block = self._block(bucket)
        tensors = block.tensors(self._memory)
        self._write(block, example)

        def forward() -> Mapping[str, Tensor]:  # Each time of a batch that remembers nothing.
            sequences = StaticSequences(tensors[CU_SEQLENS], bucket.rows, bucket.longest)
            return self._forward(Packed.placed(dict(tensors), {CU_SEQLENS: sequences}))

        replay, outputs = self._cuda.capture(forward)
        return Graph(bucket, block, replay, outputs)

    def _compare(self, graph: Graph, example: Mapping[str, Array]) -> None:
        """Raises ValueError where the graph computes something else than the module."""
        lengths = np.diff(example[CU_SEQLENS]).tolist()
        batch = self._device.take(example, Packed(example, CPU))
        right = {name: tensor.double() for name, tensor in self._forward(batch).items()}
        found = self._replay(graph, example, sum(lengths), len(lengths))
        self._cuda.mark()()
        for name, value in right.items():
            error = (found[name].double() - value).norm() / value.norm().clamp(min=1e-30)
            if not error <= _MOST_ERROR:  # NaN as well
                raise ValueError(f"of {graph.bucket} '{name}' is off by {float(error):.2g}")

    def _replay(
        self, graph: Graph, inputs: Mapping[str, Array], rows: int, sequences: int
    ) -> dict[str, Tensor]:
        self._write(graph.block, inputs)
        graph.replay()
        return {
            name: tensor[: rows if name in self._ragged else sequences]
            for name, tensor in graph.outputs.items()
        }

    def _write(self, block: Block, inputs: Mapping[str, Array]) -> None:
        """Into the graphs' inputs; what fills them up are zeros and empty sequences."""
        staging = self._cuda.pinned(block.nbytes)
        for name, array in block.arrays(staging).items():
            given = inputs[name]
            array[: len(given)] = given
            array[len(given) :] = given[-1] if name == CU_SEQLENS else 0
        self._cuda.copy(self._memory[: block.nbytes], staging)

    def _block(self, bucket: Bucket) -> Block:
        """Of the bucket's inputs."""
        size = {True: bucket.rows, False: bucket.sequences}
        shapes = [(s.name, np.dtype(s.dtype), (size[s.ragged], *s.row)) for s in self._specs]
        return Block([*shapes, (CU_SEQLENS, np.dtype(np.int32), (bucket.sequences + 1,))])

    def _example(self, bucket: Bucket) -> dict[str, Array]:
        """Zeros, in sequences of several lengths."""
        lengths, left = [self._least + bucket.shorter], bucket.rows - self._least - bucket.shorter
        while left >= self._least and len(lengths) < bucket.sequences:
            lengths.append(min(left, self._least + len(lengths) % 7))
            left -= lengths[-1]
        shape = {True: sum(lengths), False: len(lengths)}
        zeros = {s.name: np.zeros((shape[s.ragged], *s.row), s.dtype) for s in self._specs}
        return {**zeros, CU_SEQLENS: np.cumsum([0, *lengths], dtype=np.int32)}
