"""Collectives between CPU ranks of one host: the C extension, and the checks it relies on."""

from __future__ import annotations

import mmap
import os

import torch
from torch import Tensor

from .. import _shm
from .communicator import DTYPES, Place

_INDEX = {dtype: index for index, dtype in enumerate(DTYPES)}
_IS_BFLOAT16 = {torch.float32: 0, torch.bfloat16: 1}


class SharedMemory:
    """A `Communicator` over the file `region`, which is empty or of this size already."""

    def __init__(self, place: Place, region: str) -> None:
        self.rank, self.size = place.rank, place.size
        self._group = _shm.Group(
            _map(region, _shm.region_bytes(place.size, place.stages)),
            *(place.rank, place.size, place.stage, place.stages),
        )

    def all_reduce(self, x: Tensor) -> Tensor:
        if x.dtype is torch.float16:
            return x.copy_(self.all_reduce(x.float()))
        bfloat16 = _IS_BFLOAT16.get(x.dtype)
        if bfloat16 is None:
            raise TypeError(f"all_reduce takes float32, bfloat16 or float16, not {x.dtype}")
        _check(x)
        if self.size > 1:
            self._group.all_reduce(x.data_ptr(), x.numel(), bfloat16)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        _check(x)
        if self.size == 1:
            return x
        width = x.shape[-1]
        output = x.new_empty((*x.shape[:-1], self.size * width))
        self._group.all_gather(output.data_ptr(), x.data_ptr(), x.nbytes, width * x.itemsize)
        return output

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        _check(x)
        if not 0 <= source < self.size:
            raise ValueError(f"no rank {source} among {self.size}")
        if self.size > 1:
            self._group.broadcast(x.data_ptr(), x.nbytes, source)
        return x

    def send(self, x: Tensor) -> None:
        _check(x)
        self._group.send(x.data_ptr(), x.nbytes, _INDEX[x.dtype], *x.shape)

    def receive(self) -> Tensor:
        nbytes, dtype, *shape = self._group.incoming()
        x = torch.empty(shape, dtype=DTYPES[dtype])
        self._group.receive(x.data_ptr(), nbytes)
        return x

    def operations(self) -> int:
        return self._group.operations()

    def wait_seconds(self) -> float:
        return self._group.waited_ns() / 1e9

    def close(self) -> None:
        self._group.close()


def _check(x: Tensor) -> None:
    # The extension sees no more than an address and a length.
    if not (x.is_cpu and x.is_contiguous()):
        raise ValueError(f"needs a contiguous tensor on the CPU, not one on {x.device}")


def _map(path: str, size: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
