"""A checkpoint's safetensors, of which a rank reads only its slices.

Layers ask for `full(name)` or `split(name, dim, rank, size)`, or for what is `made` of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..model.errors import LoadError
from ..model.paths import regular
from .checkpoint import weight_files
from .cut import Cut, Piece, uneven


class Weights(Protocol):
    """A model's tensors by name, as layers ask for them."""

    def __contains__(self, name: str) -> bool: ...

    def full(self, name: str) -> Tensor:
        """The whole tensor."""

    def split(self, name: str, dim: int, rank: int, size: int, cut: Cut | None = None) -> Tensor:
        """The rank's share of dimension 0 or 1: by `cut`, or without one 1/size of it (the last
        ranks get one more where it does not divide)."""

    def made(self, name: str, make: Make) -> Tensor:
        """What `make` makes of some of them: joined or transposed. `name` is for it alone, and a
        rank that has slices cut by a build finds it made."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""


Make = Callable[[Weights], Tensor]


class Checkpoint:
    """The tensors of a checkpoint's files, by name.

    Raises:
        LoadError: there is no such file, or one is damaged. The message names it.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in (regular(folder, name) for name in weight_files(folder)):
            file = open_file(path)
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                self._files[name] = path
                self._shapes[name] = tuple(file.get_slice(name).get_shape())
        self._folder = folder

    def __contains__(self, name: str) -> bool:
        return name in self._files or _old(name) in self._files

    def full(self, name: str) -> Tensor:
        return self._place(self._mapped(name))

    def split(self, name: str, dim: int, rank: int, size: int, cut: Cut | None = None) -> Tensor:
        whole = self._mapped(name)
        return self._place(_share(name, whole, dim, rank, size, cut))

    def made(self, name: str, make: Make) -> Tensor:
        return make(self)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[self._key(name)]

    def _key(self, name: str) -> str:
        if name not in self:
            raise LoadError(f"the safetensors in {self._folder} hold no tensor '{name}'")
        return name if name in self._files else _old(name)

    def _mapped(self, name: str) -> Tensor:
        """A view of the file. It is opened for each, so that no page of it stays in this process's
        memory but those of tensors that are still used."""
        key = self._key(name)
        tensor: Tensor = open_file(self._files[key]).get_tensor(key)
        return tensor

    def _place(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else None  # Indices stay what they are.
        return tensor.to(self.device, dtype).contiguous()


class Tensors:
    """Tensors that are in memory already."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self._tensors = tensors
        self._dtype = dtype

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def full(self, name: str) -> Tensor:
        return self._cast(self._tensor(name))

    def split(self, name: str, dim: int, rank: int, size: int, cut: Cut | None = None) -> Tensor:
        share = _share(name, self._tensor(name), dim, rank, size, cut)
        return self._cast(share)

    def made(self, name: str, make: Make) -> Tensor:
        return make(self)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensor(name).shape)

    def _cast(self, tensor: Tensor) -> Tensor:
        dtype = self._dtype if tensor.is_floating_point() else None  # Indices stay what they are.
        return tensor.to(dtype=dtype).contiguous()

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise LoadError(f"the model has no tensor '{name}'")
        return self._tensors[name]


class Prefixed:
    """Weights whose names all have a prefix."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        self._weights = weights
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._weights

    def full(self, name: str) -> Tensor:
        return self._weights.full(self._prefix + name)

    def split(self, name: str, dim: int, rank: int, size: int, cut: Cut | None = None) -> Tensor:
        return self._weights.split(self._prefix + name, dim, rank, size, cut)

    def made(self, name: str, make: Make) -> Tensor:
        made = self._weights.made
        return made(self._prefix + name, lambda weights: make(Prefixed(weights, self._prefix)))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(self._prefix + name)


def _old(name: str) -> str:
    """What a checkpoint that was converted from TensorFlow calls it; transformers reads both."""
    for new, old in (("weight", "gamma"), ("bias", "beta")):
        if name.endswith(f"LayerNorm.{new}"):
            return f"{name.removesuffix(new)}{old}"
    return name


def open_file(path: Path) -> Any:
    """Raises LoadError where it cannot be read."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{path} is truncated or no safetensors file: {error}") from None


def _share(name: str, whole: Tensor, dim: int, rank: int, size: int, cut: Cut | None) -> Tensor:
    """The rank's, with its zeros; where it is in one piece, a view."""
    found: list[Tensor] = []
    for piece in _pieces(name, whole.shape[dim], rank, size, cut):
        found.append(whole.narrow(dim, piece.start, piece.stop - piece.start))
        if piece.zeros:
            shape = list(whole.shape)
            shape[dim] = piece.zeros
            found.append(whole.new_zeros(shape))
    return found[0] if len(found) == 1 else torch.cat(found, dim)


def _pieces(name: str, total: int, rank: int, size: int, cut: Cut | None) -> list[Piece]:
    if cut is None:
        return [uneven(total, rank, size)]
    try:
        return cut.pieces(total, rank, size)
    except LoadError as error:
        raise LoadError(f"{name}: {error}") from None
