"""One rank's part of a checkpoint as a file, `rankR.safetensors`: cut once, by a build.

The build notes what a rank's layers ask for and saves it; the layers of the rank are given the same
from there, mapped from the file as it is. So no weight is copied, and replicas share their pages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model.errors import LoadError
from ..model.paths import present, regular
from .cut import Cut
from .weights import Checkpoint, Make, Weights, open_file

_PAGE, _LINE = 4096, 64
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}
"""Those that safetensors has."""


def read(folder: Path, world_rank: int, dtype: torch.dtype, device: torch.device) -> Weights:
    """The weights in a version directory for one of the replica's ranks."""
    sliced = f"rank{world_rank}.safetensors"
    if present(folder, sliced):
        return Slices(regular(folder, sliced), device)
    return Checkpoint(folder, dtype, device)


class Slices:
    """The tensors that a `Recorder` has saved. On a processor they are views of the file."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        self._file = open_file(path)
        self._device = device
        self._keys = set(self._file.keys())
        self._shapes = _shapes(path, self._file.metadata() or {})

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def full(self, name: str) -> Tensor:
        return self._tensor(name)

    def split(self, name: str, dim: int, rank: int, size: int, cut: Cut | None = None) -> Tensor:
        return self._tensor(_key(name, dim))

    def made(self, name: str, make: Make) -> Tensor:
        return self._tensor(name) if name in self._keys else make(self)  # An older build.

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shapes[name])

    def _tensor(self, key: str) -> Tensor:
        if key not in self._keys:
            raise LoadError(f"{self._path} holds no tensor '{key}': build the model again")
        tensor: Tensor = self._file.get_tensor(key)
        _touch(tensor)
        return tensor.to(self._device)


def _touch(tensor: Tensor) -> None:
    """Reads a byte of each page, so that no request waits for a disk later."""
    tensor.flatten().view(torch.uint8)[::_PAGE].sum()


class Recorder:
    """Passes on what `weights` gives, and notes it."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._asked: dict[str, Callable[[], Tensor]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __contains__(self, name: str) -> bool:
        found = name in self._weights
        if found:
            self._shapes[name] = self._weights.shape(name)
        return found

    def full(self, name: str) -> Tensor:
        self.shape(name)
        return self._noted(name, partial(self._weights.full, name))

    def split(self, name: str, dim: int, rank: int, size: int, cut: Cut | None = None) -> Tensor:
        self.shape(name)
        part = partial(self._weights.split, name, dim, rank, size, cut)
        return self._noted(_key(name, dim), part)

    def made(self, name: str, make: Make) -> Tensor:
        return self._noted(name, partial(self._weights.made, name, make))

    def shape(self, name: str) -> tuple[int, ...]:
        self._shapes[name] = self._weights.shape(name)
        return self._shapes[name]

    def tensors(self) -> dict[str, Tensor]:
        """They are read again: what a module was given it may have changed, and a module that is
        gone by then takes no memory beside them."""
        return {key: get() for key, get in self._asked.items()}

    def save(self, path: Path) -> None:
        """Writes a file for `Slices`."""
        storages: set[int] = set()
        tensors = self.tensors()
        for key, tensor in tensors.items():
            if (storage := tensor.untyped_storage().data_ptr()) in storages:
                tensors[key] = tensor.clone()  # The format has no tied tensors.
            storages.add(storage)
        first = {key: each for key, each in tensors.items() if each.nbytes % _LINE == 0}
        metadata = {"shapes": json.dumps(self._shapes, sort_keys=True)}
        _write(path, {**first, **tensors}, metadata)

    def _noted(self, key: str, get: Callable[[], Tensor]) -> Tensor:
        self._asked[key] = get
        return get()


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """As safetensors, in this order, the first one at the beginning of a line of the cache: what a
    kernel loads across two lines takes it twice the time. safetensors' own order is by name."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        kind = _DTYPES[tensor.dtype]
        header[key] = {"dtype": kind, "shape": [*tensor.shape], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _LINE)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            tensor.contiguous().flatten().view(torch.uint8).numpy().tofile(file)


def _shapes(path: Path, metadata: Mapping[str, str]) -> dict[str, list[int]]:
    try:
        shapes = json.loads(metadata["shapes"])
    except (KeyError, ValueError):
        shapes = None
    if not isinstance(shapes, dict):
        raise LoadError(f"{path} does not say its tensors' shapes: build the model again")
    return shapes


def _key(name: str, dim: int) -> str:
    return f"{name}:{dim}"
