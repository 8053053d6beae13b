"""What the front tells a rank."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property

from .config import ModelConfig
from .config_json import parse

Source = tuple[str, ...]
"""What `parse` makes a ModelConfig of."""


@dataclass(frozen=True)
class RankSpec:
    """One rank of one generation. The forkserver, which forks it, fills in the last five: its own
    pid and the descriptors that came with the order. On another host the agent fills in cores,
    threads and folders, too."""

    source: Source
    replica: int
    generation: int
    rank: int
    tensor_rank: int
    stage: int
    world_size: int
    device: int
    cpus: tuple[int, ...]
    threads: int
    slots: int
    half: int
    scratch: str
    """A folder for what the ranks put on disk; none where there is one rank."""
    host: int = 0
    """Of the replica's hosts, the one on which it runs; 0 is Triton's."""
    address: str = ""
    """That host's, at which the ranks of the others reach it; none where there is one host."""
    parent: int = 0
    control_fd: int = -1
    arena_fd: int = -1
    region_fd: int = -1
    stacks_fd: int = -1

    @cached_property
    def config(self) -> ModelConfig:
        return parse(*self.source)

    @property
    def answers(self) -> bool:
        """The first rank of the last stage writes the outputs."""
        sizes = self.config.parameters
        return self.stage == sizes.pipeline_parallel_size - 1 and self.tensor_rank == 0

    @property
    def store(self) -> str:
        """The file where the ranks meet."""
        return f"{self.scratch}/store"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RankSpec:
        raw = json.loads(text)
        return cls(**raw | {"source": tuple(raw["source"]), "cpus": tuple(raw["cpus"])})

    def environment(self) -> dict[str, str]:
        """torchrun's variables, for modules that look for them."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.rank % self.config.ranks_per_host),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.config.ranks_per_host),
        }
