"""A checkpoint's safetensors, of which a rank reads only its slices; or the slices, cut by a build.

Layers ask for `full(name)` or `split(name, dim, rank, size)`. A build records what they are given
as `rankR.safetensors`; a rank that finds such a file is given the same from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..model.errors import LoadError
from ..model.paths import present, regular
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

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""


def read(folder: Path, world_rank: int, dtype: torch.dtype, device: torch.device) -> Weights:
    """The weights in a version directory for one of the replica's ranks."""
    sliced = f"rank{world_rank}.safetensors"
    if present(folder, sliced):
        return Slices(regular(folder, sliced), device)
    return Checkpoint(folder, dtype, device)


class Checkpoint:
    """The tensors of a checkpoint's files, by name.

    Raises:
        LoadError: there is no such file, or one is damaged. The message names it.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._files: dict[str, Any] = {}
        for name in weight_files(folder):
            file = _open(regular(folder, name))
            self._files |= dict.fromkeys(file.keys(), file)
        self._folder = folder

    def __contains__(self, name: str) -> bool:
        return name in self._files or _old(name) in self._files

    def full(self, name: str) -> Tensor:
        return self._place(self._slice(name)[...])

    def split(self, name: str, dim: int, rank: int, size: int, cut: Cut | None = None) -> Tensor:
        whole = self._slice(name)

        def read(start: int, stop: int) -> Tensor:
            part: Tensor = whole[start:stop] if dim == 0 else whole[:, start:stop]
            return part

        pieces = _pieces(name, whole.get_shape()[dim], rank, size, cut)
        return self._place(_joined(pieces, dim, read))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def _slice(self, name: str) -> Any:
        if name not in self:
            raise LoadError(f"the safetensors in {self._folder} hold no tensor '{name}'")
        key = name if name in self._files else _old(name)
        return self._files[key].get_slice(key)

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
        tensor = self._tensor(name)

        def read(start: int, stop: int) -> Tensor:
            return tensor.narrow(dim, start, stop - start)

        pieces = _pieces(name, tensor.shape[dim], rank, size, cut)
        return self._cast(_joined(pieces, dim, read))

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

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(self._prefix + name)


class Slices:
    """The tensors of one rank's `rankR.safetensors`, as a `Recorder` has saved them."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        self._file = _open(path)
        self._device = device
        self._keys = set(self._file.keys())
        self._shapes = _shapes(path, self._file.metadata() or {})

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def full(self, name: str) -> Tensor:
        return self._tensor(name)

    def split(self, name: str, dim: int, rank: int, size: int, cut: Cut | None = None) -> Tensor:
        return self._tensor(_key(name, dim))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shapes[name])

    def _tensor(self, key: str) -> Tensor:
        if key not in self._keys:
            raise LoadError(f"{self._path} holds no tensor '{key}': build the model again")
        tensor: Tensor = self._file.get_tensor(key).to(self._device)
        return tensor


class Recorder:
    """Passes on what `weights` gives and keeps it, so that it can be saved for `Slices`."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.tensors: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __contains__(self, name: str) -> bool:
        found = name in self._weights
        if found:
            self._shapes[name] = self._weights.shape(name)
        return found

    def full(self, name: str) -> Tensor:
        return self._kept(name, name, self._weights.full(name))

    def split(self, name: str, dim: int, rank: int, size: int, cut: Cut | None = None) -> Tensor:
        return self._kept(name, _key(name, dim), self._weights.split(name, dim, rank, size, cut))

    def shape(self, name: str) -> tuple[int, ...]:
        self._shapes[name] = self._weights.shape(name)
        return self._shapes[name]

    def metadata(self) -> dict[str, str]:
        """To be saved with the tensors: the shapes of the whole."""
        return {"shapes": json.dumps(self._shapes, sort_keys=True)}

    def _kept(self, name: str, key: str, tensor: Tensor) -> Tensor:
        self._shapes[name] = self._weights.shape(name)
        self.tensors[key] = tensor.clone()  # The module may go on to change what it is given.
        return tensor


def _shapes(path: Path, metadata: Mapping[str, str]) -> dict[str, list[int]]:
    try:
        shapes = json.loads(metadata["shapes"])
    except (KeyError, ValueError):
        shapes = None
    if not isinstance(shapes, dict):
        raise LoadError(f"{path} does not say its tensors' shapes: build the model again")
    return shapes


def _old(name: str) -> str:
    """What a checkpoint that was converted from TensorFlow calls it; transformers reads both."""
    for new, old in (("weight", "gamma"), ("bias", "beta")):
        if name.endswith(f"LayerNorm.{new}"):
            return f"{name.removesuffix(new)}{old}"
    return name


def _key(name: str, dim: int) -> str:
    return f"{name}:{dim}"


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{path} is truncated or no safetensors file: {error}") from None


def _pieces(name: str, total: int, rank: int, size: int, cut: Cut | None) -> list[Piece]:
    if cut is None:
        return [uneven(total, rank, size)]
    try:
        return cut.pieces(total, rank, size)
    except LoadError as error:
        raise LoadError(f"{name}: {error}") from None


def _joined(pieces: list[Piece], dim: int, read: Callable[[int, int], Tensor]) -> Tensor:
    found: list[Tensor] = []
    for piece in pieces:
        found.append(read(piece.start, piece.stop))
        if piece.zeros:
            shape = list(found[-1].shape)
            shape[dim] = piece.zeros
            found.append(found[-1].new_zeros(shape))
    return found[0] if len(found) == 1 else torch.cat(found, dim)
