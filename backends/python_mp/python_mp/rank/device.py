"""Where a rank computes: its processor cores, or one GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..machine import memory
from ..model.request import Array
from ..sharding.packed import Packed
from . import numa
from .cuda import Cuda
from .staging import Block

CPU = torch.device("cpu")
GRAPHS = 0.03
"""Of a GPU's memory, that whoever takes what is free leaves to CUDA graphs."""
Landing = Callable[[], Mapping[str, Array]]
"""Waits until a batch's outputs are there, and returns them by name."""


class Device(Protocol):
    """What a stage asks of it."""

    place: torch.device
    depth: int
    """Batches that it takes before the first one's outputs are fetched."""

    def describe(self) -> Mapping[str, str] | None:
        """`name` and `compute_capability` ("9.0") of a GPU, to compare with what an engine was
        built for; None of a processor."""

    def take(self, inputs: Mapping[str, Array], host: Packed) -> Packed:
        """The batch, there. `host` is the same one where it came from."""

    def fetch(self, outputs: Mapping[str, Tensor]) -> Landing:
        """Begins to bring them to where the front can read them."""

    def free_nbytes(self) -> int:
        """Of its memory, that whoever computes there may take."""

    def give_back(self) -> None:
        """What batches of before have left behind, when there is too little for the next one."""


class CpuDevice:
    place = CPU
    depth = 1

    def describe(self) -> None:
        return None

    def take(self, _: Mapping[str, Array], host: Packed) -> Packed:
        return host

    def fetch(self, outputs: Mapping[str, Tensor]) -> Landing:
        arrays = {name: tensor.contiguous().numpy() for name, tensor in outputs.items()}
        return lambda: arrays

    def free_nbytes(self) -> int:
        return memory.available()

    def give_back(self) -> None:
        pass


class CudaDevice:
    """Nothing waits for the GPU but the landing."""

    def __init__(self, cuda: Cuda, *, depth: int) -> None:
        self.cuda = cuda
        self.place, self.depth = cuda.place, depth

    def describe(self) -> Mapping[str, str]:
        return self.cuda.describe()

    def take(self, inputs: Mapping[str, Array], host: Packed) -> Packed:
        arrays = {**inputs, **host.known()}
        block = Block.of(arrays)
        staging, memory = self.cuda.pinned(block.nbytes), self.cuda.memory(block.nbytes)
        for name, array in block.arrays(staging).items():
            array[...] = arrays[name]
        self.cuda.copy(memory, staging)
        return host.moved(block.tensors(memory))

    def fetch(self, outputs: Mapping[str, Tensor]) -> Landing:
        landing = {}
        for name, tensor in outputs.items():
            there = tensor.contiguous()
            here = self.cuda.pinned(there.nbytes).view(there.dtype).view(there.shape)
            self.cuda.copy(here, there)
            landing[name] = here
        wait = self.cuda.mark()

        def land() -> dict[str, Array]:
            wait()
            return {name: tensor.numpy() for name, tensor in landing.items()}

        return land

    def free_nbytes(self) -> int:
        return max(0, self.cuda.free() - int(GRAPHS * self.cuda.total()))

    def give_back(self) -> None:
        self.cuda.give_back()


def of_index(index: int, *, alone: bool, tf32: bool) -> Device:
    """The GPU with that index, or for a negative one the processor.

    Args:
        alone: the rank has no peer. With one, batches come one after the other: what they say to
            each other has no other order.
        tf32: whether a GPU may round what float32 products are made of.
    """
    if index < 0:
        return CpuDevice()
    cuda = Cuda(index, tf32=tf32)
    numa.stay_near(cuda.address())
    return CudaDevice(cuda, depth=2 if alone else 1)
