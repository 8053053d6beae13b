"""What a module knows about its place: the `Shard` that `build(shard)` is called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ..model.errors import LoadError
from ..rank.collectives import Communicator
from .capture import collective
from .cut import uneven
from .parallelize import parallelize
from .slices import read
from .split_plan import Plan
from .tied import Renamed, tied
from .weights import Weights


@dataclass(frozen=True)
class Shard:
    """One rank's part of a model: tensor rank `rank` of `size`, pipeline stage `stage` of `stages`.

    `folder` is the version directory and `parameters` holds the config's `module.*` parameters.
    """

    rank: int
    size: int
    stage: int
    stages: int
    dtype: torch.dtype
    device: torch.device
    folder: Path
    parameters: Mapping[str, str]
    communicator: Communicator
    given: Weights | None = None
    """Weights to take instead of the folder's."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    """The names of config.pbtxt, in its order; of inputs those that batches have."""
    panels: bool = True
    """Whether weights of products may lie in panels; a module that is traced has them in rows."""

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.stages - 1

    @property
    def world_rank(self) -> int:
        """Among all ranks of the replica; the R of its files `rankR.*`."""
        return self.stage * self.size + self.rank

    @cached_property
    def weights(self) -> Weights:
        """The folder's safetensors; for `build` only, which is when the files are open."""
        return self.given or read(self.folder, self.world_rank, self.dtype, self.device)

    def close_weights(self) -> None:
        """Closes the files. What the module has of them stays mapped, even if they are removed."""
        self.__dict__.pop("weights", None)

    def layers(self, total: int) -> range:
        """The layers of this stage, of `total` in the model."""
        if total < self.stages:
            raise LoadError(
                f"pipeline_parallel_size {self.stages} is more than the model's {total} layers"
            )
        mine = uneven(total, self.stage, self.stages)
        return range(mine.start, mine.stop)

    def share(self, total: int, what: str) -> int:
        """This rank's part of `total` heads or columns.

        Raises:
            LoadError: tensor_parallel_size does not divide it.
        """
        if total % self.size:
            raise LoadError(f"tensor_parallel_size {self.size} does not divide the {total} {what}")
        return total // self.size

    def parallelize(self, module: nn.Module, plan: Plan) -> nn.Module:
        """Splits a module that knows nothing of ranks: see `parallelize.parallelize`."""
        names = tied(module, self.weights)
        shard = replace(self, given=Renamed(self.weights, names)) if names else self
        return parallelize(module, plan, shard)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the stage's ranks, in place."""
        return collective(self.communicator.all_reduce, x) if self.size > 1 else x

    def all_gather(self, x: Tensor) -> Tensor:
        """The ranks' [..., n] in rank order along the last dimension: [..., size * n]."""
        return self.communicator.all_gather(x) if self.size > 1 else x
