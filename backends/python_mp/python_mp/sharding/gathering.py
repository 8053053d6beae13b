"""Split linears between which a module needs whole rows: what it does with them is not known to
divide among ranks (a norm over all heads, parts of unequal width)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cut import EVEN, uneven
from .layers import ColumnParallelLinear, RowParallelLinear, product_weight
from .products import linear
from .tensor_parallel import TensorParallel


class GatheredLinear(nn.Module):
    """[..., in] -> [..., out], the same on every rank, each of which computes some columns."""

    def __init__(self, shard: TensorParallel, name: str, *, transposed: bool = False) -> None:
        super().__init__()
        self.linear = ColumnParallelLinear(shard, name, cuts=[EVEN], transposed=transposed)
        self.out_features = shard.weights.shape(f"{name}.weight")[int(transposed)]
        self._shard = shard

    @property
    def weight(self) -> Tensor:
        """For modules that ask for its dtype."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        shard, width = self._shard, self.linear.out_features
        if shard.size == 1:
            return y
        placed = F.pad(y, (shard.rank * width, (shard.size - shard.rank - 1) * width))
        return shard.all_reduce(placed)[..., : self.out_features]


class ScatteredLinear(nn.Module):
    """[..., in] -> [..., out], both the same on every rank, each of which has some columns of the
    weight."""

    def __init__(self, shard: TensorParallel, name: str, *, transposed: bool = False) -> None:
        super().__init__()
        self.linear = RowParallelLinear(shard, name, EVEN, transposed=transposed)
        self._shard = shard

    @property
    def weight(self) -> Tensor:
        """For modules that ask for its dtype."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        width, rank = self.linear.weight.shape[1], self._shard.rank
        padded = F.pad(x, (0, self._shard.size * width - x.shape[-1]))
        y: Tensor = self.linear(padded[..., rank * width : (rank + 1) * width])
        return y


class VocabularyLinear(nn.Module):
    """[rows, hidden] -> [rows, vocabulary], the same on every rank, each of which has as many of
    the vocabulary's rows as in a `VocabParallelEmbedding`.

    Args:
        embedding: the weight that it is tied to and multiplies with as it lies: this rank's part of
            it, or in rows the whole.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, shard: TensorParallel, name: str, embedding: Tensor | None = None) -> None:
        super().__init__()
        weights, self._shard = shard.weights, shard
        total, place = weights.shape(f"{name}.weight")[0], (shard.rank, shard.size)
        pieces = [uneven(total, rank, shard.size) for rank in range(shard.size)]
        self._widths = [piece.stop - piece.start for piece in pieces]
        mine = pieces[shard.rank]
        if embedding is None:
            weight = product_weight(shard, [f"{name}.weight"], 0, [None])
        else:
            is_mine = len(embedding) == mine.stop - mine.start
            weight = embedding if is_mine else embedding[mine.start : mine.stop]
        self.register_buffer("weight", weight)
        has_bias = f"{name}.bias" in weights
        bias = weights.split(f"{name}.bias", 0, *place) if has_bias else None
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y, width = linear(x, self.weight, self.bias), max(self._widths)
        if self._shard.size == 1:
            return y
        if not len(x):  # Nothing to meet for.
            return y.new_empty(0, sum(self._widths))
        gathered = self._shard.all_gather(F.pad(y, (0, width - y.shape[-1])))
        parts = gathered.split_with_sizes([width] * len(self._widths), -1)
        return torch.cat([p[..., :own] for p, own in zip(parts, self._widths, strict=True)], -1)
