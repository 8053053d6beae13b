"""Where a rank computes: its processor cores, or one GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..machine import memory
from ..model.request import Array


class Device(Protocol):
    """What a stage asks of it."""

    place: torch.device

    def describe(self) -> Mapping[str, str] | None:
        """`name` and `compute_capability` ("9.0") of a GPU, to compare with what an engine was
        built for; None of a processor."""

    def to_host(self, tensor: Tensor, dtype: torch.dtype) -> Array:
        """The tensor's numbers in that dtype, contiguous, where the front can read them."""

    def free_nbytes(self) -> int:
        """Of its memory, that whoever computes there may take."""


class CpuDevice:
    place = torch.device("cpu")

    def describe(self) -> None:
        return None

    def to_host(self, tensor: Tensor, dtype: torch.dtype) -> Array:
        array: Array = tensor.to("cpu", dtype).contiguous().numpy()
        return array

    def free_nbytes(self) -> int:
        return memory.available()


class CudaDevice(CpuDevice):
    """Makes the GPU with that index the process's current one."""

    def __init__(self, index: int) -> None:
        self.place = torch.device("cuda", index)
        torch.cuda.set_device(self.place)

    def describe(self) -> Mapping[str, str]:  # type: ignore[override]
        return gpu(self.place)

    def free_nbytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.place)
        return free


def of_index(index: int) -> Device:
    """The GPU with that index, or for a negative one the processor."""
    return CpuDevice() if index < 0 else CudaDevice(index)


def gpu(device: torch.device | None = None) -> dict[str, str]:
    """`name` and `compute_capability` ("9.0") of a GPU, by default the current one."""
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return {"name": name, "compute_capability": f"{major}.{minor}"}
