"""Tensors that a module has under several names, and a checkpoint under one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from .cut import Cut
from .weights import Make, Weights


class Names(Protocol):
    def __contains__(self, name: str, /) -> bool: ...


def tied(module: nn.Module, weights: Names) -> dict[str, str]:
    """For each name of a tied tensor that the checkpoint lacks, one that it has."""
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    found: dict[str, str] = {}
    for same in (each for each in names.values() if len(each) > 1):
        if saved := next((name for name in same if name in weights), None):
            found |= {name: saved for name in same if name not in weights}
    return found


class Renamed:
    """Weights of which some have other names besides."""

    def __init__(self, weights: Weights, names: Mapping[str, str]) -> None:
        self._weights = weights
        self._names = names

    def __contains__(self, name: str) -> bool:
        return self._name(name) in self._weights

    def full(self, name: str) -> Tensor:
        return self._weights.full(self._name(name))

    def split(self, name: str, dim: int, rank: int, size: int, cut: Cut | None = None) -> Tensor:
        return self._weights.split(self._name(name), dim, rank, size, cut)

    def made(self, name: str, make: Make) -> Tensor:
        return self._weights.made(name, lambda weights: make(Renamed(weights, self._names)))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(self._name(name))

    def _name(self, name: str) -> str:
        return self._names.get(name, name)
