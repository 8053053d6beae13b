"""A checkpoint's safetensors, of which a rank reads only its slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import LoadError


class Weights:
    """All `*.safetensors` of a folder, by tensor name; `prefix` is dropped where names have it.

    Raises:
        LoadError: there is no such file, or one is damaged. The message names it.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._files: dict[str, Any] = {}
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise LoadError(f"no *.safetensors in {folder}: run the build script again")
        for path in paths:
            try:
                file = safe_open(path, framework="pt")
                self._files |= dict.fromkeys(file.keys(), file)  # type: ignore[no-untyped-call]
            except (SafetensorError, OSError) as error:
                raise LoadError(f"{path} is truncated or no safetensors file: {error}") from None
        self._folder = folder

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def full(self, name: str) -> Tensor:
        """The whole tensor."""
        return self._place(self._slice(name)[:])

    def split(self, name: str, dim: int, rank: int, size: int) -> Tensor:
        """The rank's 1/size of dimension 0 or 1 (the first ranks get one more where it does not
        divide)."""
        part = self._slice(name)
        total = part.get_shape()[dim]
        start, stop = bounds(total, rank, size)
        return self._place(part[start:stop] if dim == 0 else part[:, start:stop])

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def _slice(self, name: str) -> Any:
        if name not in self._files:
            raise LoadError(f"the safetensors in {self._folder} hold no tensor '{name}'")
        return self._files[name].get_slice(name)

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype).contiguous()


def bounds(total: int, rank: int, size: int) -> tuple[int, int]:
    """Where the rank's share of `total` items starts and stops."""
    return total * rank // size, total * (rank + 1) // size
