"""A module's work as CUDA graphs: what the host says once, the GPU does again without it.

A batch is filled up to the size of a bucket, and nobody reads what becomes of that. Graphs are
captured between batches, first for what came and had none. One whose numbers are not those that the
module computes without it, ends all: then the module does something that no graph can repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..model.errors import describe
from ..model.request import Array
from ..sharding.packed import Packed
from .cuda import Cuda

log = logging.getLogger(__name__)

Forward = Callable[[Packed], Mapping[str, Tensor]]
_MOST_ERROR = 0.05
"""Of a graph's numbers against the module's, in the norm: other kernels round otherwise."""


class Given(NamedTuple):
    """A batch: as it came, and as the host reads it."""

    inputs: Mapping[str, Array]
    host: Packed


Bucket = TypeVar("Bucket")


class Static(Protocol[Bucket]):
    """Batches of one kind, in memory that stays where it is."""

    share: float
    """Of the GPU's memory, for all graphs."""

    def __iter__(self) -> Iterator[Bucket]:
        """All buckets, those that are wanted most first."""

    def bucket(self, given: Given) -> Bucket | None:
        """The smallest that holds the batch; None where none does."""

    def keep(self, given: Given) -> Given | None:
        """The batch, to be computed once more later; None where that may not be."""

    def example(self, bucket: Bucket) -> Given | None:
        """Any batch of the bucket; None where none can be computed."""

    def write(self, bucket: Bucket, given: Given) -> None:
        """Begins to bring the batch to where graphs of the bucket read it, filled up."""

    def batch(self, bucket: Bucket) -> Packed:
        """What was written, each time of a batch that remembers nothing."""

    def cut(self, outputs: Mapping[str, Tensor], given: Given) -> dict[str, Tensor]:
        """Without what has filled the batch up."""


class Graph(NamedTuple):
    replay: Callable[[], None]
    outputs: Mapping[str, Tensor]


class Graphs(Generic[Bucket]):
    """
    Args:
        static: the batches that graphs are made for.
        forward: the module's work, to the outputs.
        take: brings a batch to the GPU, for the module.
    """

    def __init__(
        self,
        cuda: Cuda,
        static: Static[Bucket],
        forward: Forward,
        take: Callable[[Mapping[str, Array], Packed], Packed],
    ) -> None:
        self._cuda, self._static, self._forward, self._take = cuda, static, forward, take
        self._graphs: dict[Bucket, Graph] = {}
        self._wanted: tuple[Bucket, Given | None] | None = None
        self._rest: Iterator[Bucket] | None = iter(static)
        self._before = cuda.reserved()

    def run(self, given: Given) -> dict[str, Tensor] | None:
        """The outputs, which are there when the GPU has come so far; None where there is no graph
        for such a batch, yet."""
        bucket = self._static.bucket(given)
        if bucket is None:
            return None
        graph = self._graphs.get(bucket)
        if graph is None:
            if self._rest is not None and self._wanted is None:
                self._wanted = bucket, self._static.keep(given)
            return None
        return self._replay(bucket, graph, given)

    def improve(self) -> bool:
        """Captures one more graph; False where there is nothing more to do."""
        if self._rest is None:
            return False
        wanted, self._wanted = self._wanted, None
        bucket = wanted[0] if wanted else next(self._rest, None)
        held = self._cuda.reserved() - self._before
        if bucket is None or held > self._static.share * self._cuda.total():
            self._rest = None
        elif bucket not in self._graphs and (example := self._static.example(bucket)):
            self._try(bucket, example, wanted[1] if wanted and wanted[1] else example)
        return self._rest is not None

    def _try(self, bucket: Bucket, example: Given, real: Given) -> None:
        try:
            graph = self._capture(bucket, example)
            self._compare(bucket, graph, real)
            self._graphs[bucket] = graph
        except torch.OutOfMemoryError:  # What there is, is good.
            self._rest = None
            self._cuda.give_back()
        except Exception as error:  # Of the module, or of torch, which says it in many ways.
            log.warning("no CUDA graphs: %s", describe(error))
            self._graphs.clear()
            self._rest = None

    def _capture(self, bucket: Bucket, example: Given) -> Graph:
        self._static.write(bucket, example)
        return Graph(*self._cuda.capture(lambda: self._forward(self._static.batch(bucket))))

    def _compare(self, bucket: Bucket, graph: Graph, given: Given) -> None:
        """Raises ValueError where the graph computes something else than the module."""
        batch = self._take(*given)
        right = {name: tensor.double() for name, tensor in self._forward(batch).items()}
        found = self._replay(bucket, graph, given)
        self._cuda.mark()()
        for name, value in right.items():
            error = (found[name].double() - value).norm() / value.norm().clamp(min=1e-30)
            if not error <= _MOST_ERROR:  # NaN as well
                raise ValueError(f"of {bucket} '{name}' is off by {float(error):.2g}")

    def _replay(self, bucket: Bucket, graph: Graph, given: Given) -> dict[str, Tensor]:
        self._static.write(bucket, given)
        graph.replay()
        return self._static.cut(graph.outputs, given)
