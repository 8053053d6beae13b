"""Collectives by torch.distributed: NCCL between GPUs, gloo where the C extension is not built."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from .communicator import DTYPES, Place

HEADER = 16  # int64 fields of a message's header: dtype, dimensions, shape
_PATIENCE = 6
"""Times `hang_seconds`, for one collective and what its peers compute before it. Who waits for a
GPU spins, and so is at work for the watchdog; who waits for gloo sleeps."""
IN_FLIGHT = 2  # messages that may wait for their receiver


class Distributed:
    """A `Communicator` over gloo or NCCL; one a process, for torch keeps one default group."""

    def __init__(
        self,
        backend: str,
        place: Place,
        store: str | Store,
        device: torch.device,
        hang_seconds: int = 0,
        address: str = "",
    ) -> None:
        self.rank, self.size = place.rank, place.size
        self._device, self._world_rank = device, place.world_rank
        self._sent: deque[tuple[dist.Work | None, Tensor]] = deque()
        self._operations, self._waited = 0, 0.0
        # Meeting at a file: torch's TCPStore listens on every interface, as NCCL and gloo would.
        interface = _interface(address) if address else "lo"
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", interface)
        dist.init_process_group(
            backend,
            init_method=f"file://{store}" if isinstance(store, str) else None,
            store=None if isinstance(store, str) else store,
            rank=place.world_rank,
            world_size=place.world_size,
            device_id=device if backend == "nccl" else None,
            timeout=_patience(hang_seconds) if backend == "nccl" else None,
        )
        # Every rank takes part in making every stage's group.
        stages = [range(s * self.size, (s + 1) * self.size) for s in range(place.stages)]
        self.group = [dist.new_group(list(ranks)) for ranks in stages][place.stage]
        self._first = place.stage * self.size

    def all_reduce(self, x: Tensor) -> Tensor:
        with self._timed():
            if x.dtype is torch.bfloat16 and x.is_cpu:  # gloo would round at every step
                total = x.float()
                dist.all_reduce(total, group=self.group)
                return x.copy_(total)
            dist.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with self._timed():
            dist.all_gather(parts, x, group=self.group)
        return torch.cat(parts, dim=-1)

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        with self._timed():
            dist.broadcast(x, self._first + source, group=self.group)
        return x

    def send(self, x: Tensor) -> None:
        header = torch.zeros(HEADER, dtype=torch.int64)
        header[0], header[1] = DTYPES.index(x.dtype), x.dim()
        header[2 : 2 + x.dim()] = torch.tensor(x.shape)
        with self._timed():
            while len(self._sent) >= 2 * IN_FLIGHT:
                self._finish_oldest()
            for part in (header.to(self._device), x.clone()):
                work = dist.isend(part, self._world_rank + self.size)
                self._sent.append((work, part))

    def receive(self) -> Tensor:
        source = self._world_rank - self.size
        with self._timed():
            header = torch.empty(HEADER, dtype=torch.int64, device=self._device)
            dist.recv(header, source)
            dtype, dims, *shape = header.tolist()
            x = torch.empty(shape[:dims], dtype=DTYPES[dtype], device=self._device)
            dist.recv(x, source)
        return x

    def operations(self) -> int:
        return self._operations

    def wait_seconds(self) -> float:
        """Time spent inside the calls: torch does not tell waiting from working."""
        return self._waited

    def close(self) -> None:
        while self._sent:
            self._finish_oldest()
        dist.destroy_process_group()

    def _finish_oldest(self) -> None:
        work, _ = self._sent.popleft()
        if work is not None:
            work.wait()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start
        self._operations += 1


def _patience(hang_seconds: int) -> timedelta | None:
    return timedelta(seconds=_PATIENCE * hang_seconds) if hang_seconds else None


def _interface(address: str) -> str:
    """The device that has it."""
    devices = psutil.net_if_addrs()
    return next(name for name in devices if any(a.address == address for a in devices[name]))
