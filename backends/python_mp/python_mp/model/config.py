"""A model as its config.pbtxt describes it: `config_json` makes it of what Triton hands over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from . import ragged_groups
from .parameters import Parameters as Parameters
from .ragged_groups import Group


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `dims` is without the batch dimension; -1 is a dimension of any size.

    A ragged tensor's first dimension differs from request to request: its rows are packed end to
    end instead of being padded. Inputs say so by `allow_ragged_batch`; an output is ragged when its
    first dimension is -1 and the model has a ragged input.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    ragged: bool
    optional: bool = False
    group: int = 0
    """Of a ragged one, that of `ModelConfig.groups` whose lengths it has."""

    @property
    def row(self) -> tuple[int, ...]:
        """Dims of one packed row."""
        return self.dims[self.ragged :]

    @cached_property
    def row_nbytes(self) -> int:
        """Bytes of one packed row; at least, where its size is free."""
        return np.dtype(self.dtype).itemsize * math.prod(abs(dim) for dim in self.row)


@dataclass(frozen=True)
class InstanceGroup:
    """One entry of `instance_group`."""

    name: str
    kind: str
    count: int
    gpus: tuple[int, ...]
    passive: bool


@dataclass(frozen=True)
class ModelConfig:
    """A model as its config.pbtxt describes it.

    `folder` is the version directory; `module_parameters` are the parameters written `module.KEY`,
    handed to the user's `module.py` as they are; `queue_seconds` is how long a request may wait at
    most (`default_timeout_microseconds` of the `default_queue_policy`), infinite if not said.
    """

    name: str
    version: int
    folder: Path
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    instance_groups: tuple[InstanceGroup, ...]
    parameters: Parameters
    module_parameters: Mapping[str, str]
    queue_seconds: float
    source: tuple[str, ...]
    """The arguments of `parse` that made this, so that a rank can make it again."""
    newest_versions: float = 1
    """Of which Triton serves so many; infinite where it keeps older ones for other reasons."""

    @property
    def world_size(self) -> int:
        """Ranks in one replica."""
        return self.parameters.tensor_parallel_size * self.parameters.pipeline_parallel_size

    @property
    def ranks_per_host(self) -> int:
        """Of one replica. The first so many are on Triton's own host."""
        return self.world_size // self.parameters.hosts

    @property
    def depth(self) -> int:
        """Batches that a rank is given at a time. A GPU has the next one before it is through with
        the first; ranks that meet take them one by one, and a step of generation needs the last."""
        on_gpu = all(group.kind == "KIND_GPU" for group in self.instance_groups)
        return 2 if on_gpu and self.world_size == 1 and not self.parameters.generates else 1

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Of ragged tensors, which have lengths in common; one where nothing is ragged."""
        return ragged_groups.read(self.parameters.lengths)

    @cached_property
    def batch_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that batches have: all but those that say lengths."""
        said = {group.lengths for group in self.groups}
        return tuple(each.name for each in self.inputs if each.name not in said)

    @cached_property
    def has_ragged_input(self) -> bool:
        return any(spec.ragged for spec in self.inputs)
