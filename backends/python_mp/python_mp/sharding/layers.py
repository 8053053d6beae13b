"""Tensor-parallel layers after Megatron-LM (arXiv:1909.08053, section 3). Each loads its own slice.

y = ColumnParallel(x)    each rank has some of the columns of y
z = RowParallel(y)       each rank has a part of the sum; one all-reduce makes it whole
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .numerics import linear
from .shard import Shard
from .weights import bounds


class ColumnParallelLinear(nn.Module):
    """[n, in] -> [n, out/size]. Several names are stacked into one product (q, k, v)."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, shard: Shard, *names: str) -> None:
        super().__init__()
        weights, place = shard.weights, (0, shard.rank, shard.size)
        for name in names:
            shard.share(weights.shape(f"{name}.weight")[0], f"rows of {name}.weight")
        weight = torch.cat([weights.split(f"{name}.weight", *place) for name in names])
        bias = None
        if f"{names[0]}.bias" in weights:
            bias = torch.cat([weights.split(f"{name}.bias", *place) for name in names])
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """[n, in/size] -> [n, out], the same on every rank."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, shard: Shard, name: str) -> None:
        super().__init__()
        self.shard = shard
        weights = shard.weights
        shard.share(weights.shape(f"{name}.weight")[1], f"columns of {name}.weight")
        self.register_buffer("weight", weights.split(f"{name}.weight", 1, shard.rank, shard.size))
        bias = weights.full(f"{name}.bias") if f"{name}.bias" in weights else None
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.shard.size == 1:
            return linear(x, self.weight, self.bias)
        y = self.shard.all_reduce(linear(x, self.weight, None))
        return y if self.bias is None else y.add_(self.bias)


class VocabParallelEmbedding(nn.Module):
    """Token ids [n] -> [n, hidden]. Each rank holds a block of the vocabulary's rows."""

    weight: Tensor

    def __init__(self, shard: Shard, name: str) -> None:
        super().__init__()
        self.shard = shard
        self.vocabulary = shard.weights.shape(f"{name}.weight")[0]
        self.start, self.stop = bounds(self.vocabulary, shard.rank, shard.size)
        self.register_buffer(
            "weight", shard.weights.split(f"{name}.weight", 0, shard.rank, shard.size)
        )

    def forward(self, ids: Tensor) -> Tensor:
        if self.shard.size == 1:
            return F.embedding(ids, self.weight)
        mine = (ids >= self.start) & (ids < self.stop)
        rows = F.embedding((ids - self.start) * mine, self.weight) * mine[:, None]
        return self.shard.all_reduce(rows)


class LayerNorm(nn.Module):
    """Over the last dimension; every rank has all of it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, shard: Shard, name: str, epsilon: float) -> None:
        super().__init__()
        self.register_buffer("weight", shard.weights.full(f"{name}.weight"))
        self.register_buffer("bias", shard.weights.full(f"{name}.bias"))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
