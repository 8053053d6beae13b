"""Split linears between which a module needs whole rows: what it does with them is not known to
divide among ranks (a norm over all heads, parts of unequal width)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .cut import EVEN
from .layers import ColumnParallelLinear, RowParallelLinear
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
