"""The calls of CUDA that a rank makes, and nothing that decides."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Outputs = Mapping[str, Tensor]


class Cuda:
    """One GPU and one stream: what is asked for later happens later."""

    def __init__(self, index: int, *, tf32: bool) -> None:
        self.place = torch.device("cuda", index)
        torch.cuda.set_device(self.place)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        self._pool = torch.cuda.graph_pool_handle()

    def pinned(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] of the host, which copies do not wait for. It is not handed out again
        before all copies from and into it are done."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def memory(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] of the GPU."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.place)

    def copy(self, to: Tensor, of: Tensor) -> None:
        """Begins to; nobody waits."""
        to.copy_(of, non_blocking=True)

    def mark(self) -> Callable[[], None]:
        """What returns when all that was asked for up to now is done."""
        event = torch.cuda.Event()
        event.record()
        return event.synchronize

    def capture(self, call: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """A CUDA graph of what `call` asks for: its replay, and the tensors that this writes. All
        graphs share one memory, so that they must be taken away before another one is replayed.

        Raises:
            Exception: `call` waits for the GPU, or does what no graph can hold.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _never_waiting():
            call()  # What is made at the first call only, is made here.
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Not torch.cuda.graph, which first looks through all of Python's objects for garbage.
        with torch.cuda.stream(stream):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                outputs = call()
            finally:
                graph.capture_end()
        torch.cuda.synchronize()
        return graph.replay, outputs

    def reserved(self) -> int:
        """Bytes that torch holds."""
        return torch.cuda.memory_reserved(self.place)

    def free(self) -> int:
        """Bytes that nobody has taken."""
        return int(torch.cuda.mem_get_info(self.place)[0])

    def total(self) -> int:
        """Bytes that the GPU has."""
        return int(torch.cuda.get_device_properties(self.place).total_memory)

    def describe(self) -> dict[str, str]:
        return gpu(self.place)

    def address(self) -> str:
        """On the PCI bus, as in /sys: "0000:1b:00.0"."""
        said: Any = torch.cuda.get_device_properties(self.place)  # Its stub lacks these.
        return f"{said.pci_domain_id:04x}:{said.pci_bus_id:02x}:{said.pci_device_id:02x}.0"

    def give_back(self) -> None:
        """What torch holds and nobody uses."""
        torch.cuda.empty_cache()


@contextmanager
def _never_waiting() -> Iterator[None]:
    """Raises RuntimeError in the with block where the host would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(action="ignore"):  # That it is a prototype.
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def gpu(device: torch.device | None = None) -> dict[str, str]:
    """`name` and `compute_capability` ("9.0") of a GPU, by default the current one."""
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return {"name": name, "compute_capability": f"{major}.{minor}"}
