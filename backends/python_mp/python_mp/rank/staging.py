"""Tensors of a batch in one block of bytes, so that one copy takes them all to a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model.request import Array

ALIGN = 256
"""Bytes: what the kernels of GPUs ask of an address at most."""


class Place(NamedTuple):
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


class Block:
    """Where each of some tensors lies.

    Args:
        tensors: (name, dtype, shape) of each.
    """

    def __init__(
        self, tensors: Iterable[tuple[str, np.dtype[np.generic], tuple[int, ...]]]
    ) -> None:
        self.places: dict[str, Place] = {}
        self.nbytes = 0
        for name, dtype, shape in tensors:
            place = Place(dtype, shape, self.nbytes)
            self.places[name] = place
            self.nbytes += -(-place.nbytes // ALIGN) * ALIGN

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Block:
        return cls((name, array.dtype, array.shape) for name, array in arrays.items())

    def arrays(self, memory: Tensor) -> dict[str, Array]:
        """Views of uint8 [nbytes, or more] of the host."""
        block = memory.numpy()
        return {
            name: block[each.offset : each.offset + each.nbytes]
            .view(each.dtype)
            .reshape(each.shape)
            for name, each in self.places.items()
        }

    def tensors(self, memory: Tensor) -> dict[str, Tensor]:
        """Views of uint8 [nbytes, or more], wherever it lies."""
        found = {}
        for name, each in self.places.items():
            dtype = torch.from_numpy(np.empty(0, each.dtype)).dtype
            found[name] = (
                memory[each.offset : each.offset + each.nbytes].view(dtype).view(each.shape)
            )
        return found
