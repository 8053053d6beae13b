"""What a parallel layer asks of its rank's `Shard`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .weights import Weights


class TensorParallel(Protocol):
    """One of the ranks of a stage."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def weights(self) -> Weights: ...

    @property
    def panels(self) -> bool:
        """Whether weights of products may lie in panels."""

    def share(self, total: int, what: str) -> int:
        """This rank's part of `total` heads or columns; LoadError where it does not divide."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the stage's ranks, in place."""

    def all_gather(self, x: Tensor) -> Tensor:
        """The ranks' [..., n] in rank order along the last dimension: [..., size * n]."""
