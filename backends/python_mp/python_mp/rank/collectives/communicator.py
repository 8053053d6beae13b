"""What a rank may ask of its peers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# A message names its dtype by its index here.
DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


class Communicator(Protocol):
    """Tensor-parallel collectives within one stage, and the links to the neighbouring stages.

    Every rank of the stage makes the same calls in the same order, from one thread at a time.
    Tensors are contiguous and on the communicator's device. A call that waits for a peer of a
    group that has ended raises `GroupAborted`; no further call may follow a raised one.
    """

    rank: int
    """Tensor rank within the stage."""
    size: int
    """Ranks in the stage."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum of the ranks' float32, bfloat16 or float16 `x`, in place, the same bits on every
        rank."""

    def all_gather(self, x: Tensor) -> Tensor:
        """The ranks' [..., n] in rank order along the last dimension: [..., size * n]."""

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """The source's `x`, in place."""

    def send(self, x: Tensor) -> None:
        """Hand `x` to this tensor rank of the next stage.

        Returns once `x` is copied; two messages of up to 16 MiB may wait for their receiver.
        """

    def receive(self) -> Tensor:
        """The oldest tensor that this tensor rank of the previous stage sent."""

    def operations(self) -> int:
        """Calls completed so far: ranks of a stage with equal numbers are in step."""

    def wait_seconds(self) -> float:
        """Time spent waiting for peers so far."""

    def close(self) -> None:
        """Leave the group; no other call may follow."""


@dataclass(frozen=True)
class Place:
    """Where a rank stands in its replica, whose ranks stand in equal blocks on its hosts: a host
    has whole stages, or a stage has whole hosts."""

    rank: int
    size: int
    stage: int
    stages: int
    hosts: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.size and 0 <= self.stage < self.stages):
            raise ValueError(f"no such place in a replica: {self}")
        block, left = divmod(self.world_size, self.hosts)
        if left or (block % self.size and self.size % block):
            raise ValueError(f"{self.hosts} hosts cannot share these ranks equally: {self}")

    @property
    def world_size(self) -> int:
        return self.size * self.stages

    @property
    def world_rank(self) -> int:
        return self.stage * self.size + self.rank

    @property
    def inside(self) -> Place:
        """Among the ranks of its own host."""
        block = self.world_size // self.hosts
        width, stages = min(self.size, block), max(1, block // self.size)
        return Place(self.rank % width, width, self.stage % stages, stages)

    def is_near(self, world_rank: int) -> bool:
        """Whether that rank is on this one's host."""
        block = self.world_size // self.hosts
        return world_rank // block == self.world_rank // block

    @property
    def before(self) -> int:
        """The world rank that hands on to this one, if this is not the first stage."""
        return self.world_rank - self.size

    @property
    def behind(self) -> int:
        """The one to which it hands on, if this is not the last stage."""
        return self.world_rank + self.size

    @property
    def leaders(self) -> list[int]:
        """The first rank of each host that has a part of this stage; world ranks."""
        first = self.stage * self.size
        return [*range(first, first + self.size, self.inside.size)]


class Alone:
    """The communicator of a replica of one rank: nobody to wait for."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        return x

    def send(self, x: Tensor) -> None:
        raise ValueError("no next stage")

    def receive(self) -> Tensor:
        raise ValueError("no previous stage")

    def operations(self) -> int:
        return 0

    def wait_seconds(self) -> float:
        return 0.0

    def close(self) -> None:
        pass
