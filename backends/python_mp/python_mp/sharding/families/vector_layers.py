"""sentence-transformers' modules behind a pooling: [texts, width] -> [texts, width], in float32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..weights import Weights
from .task import Layer


def make(layer: Layer, weights: Weights) -> nn.Module:
    """Raises LoadError where a weight is missing."""
    return Dense(layer, weights) if layer.kind == "Dense" else Normalize()


class Normalize(nn.Module):
    """Vectors of length 1; zeros where there is no length."""

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)


class Dense(nn.Module):
    def __init__(self, layer: Layer, weights: Weights) -> None:
        super().__init__()
        given = {name: weights.full(name) for name in layer.shapes}
        self._weight = given[f"{layer.name}.linear.weight"]
        self._bias = given.get(f"{layer.name}.linear.bias")
        self._projection = given.get(f"{layer.name}.residual.weight")
        self._adds = layer.residual
        self._activation: nn.Module = getattr(nn, layer.activation)()

    def forward(self, vectors: Tensor) -> Tensor:
        made: Tensor = self._activation(F.linear(vectors, self._weight, self._bias))
        if not self._adds:
            return made
        return made + (vectors if self._projection is None else F.linear(vectors, self._projection))
