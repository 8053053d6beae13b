"""From `instance_group` to ranks: a pure function that everything else asks.

    instance_group [ { name: "lead"  count: 2 }, { name: "shard" count: 2 passive: true } ]
    tensor_parallel_size 2

    replica 0:  rank 0 = lead_0   rank 1 = shard_0
    replica 1:  rank 0 = lead_1   rank 1 = shard_1

Replica r owns active instance r and the r-th block of passive ones, in config order.
Rank = stage x tensor_parallel_size + tensor rank.

With `hosts` = N a replica's ranks stand in N equal blocks. Only the first, on Triton's own host,
has instances; rank i of a later block has kind and device of rank i of the first, on its own host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .config import InstanceGroup, ModelConfig
from .errors import ConfigError

CPU = -1


@dataclass(frozen=True)
class Instance:
    """A Triton instance. Its name alone is no identity: one per GPU share `<group>_<index>`."""

    name: str
    device: int
    """GPU number, or CPU."""


@dataclass(frozen=True)
class RankPlacement:
    """Where one rank stands in its replica, and the instance whose cores or device it uses, or the
    like of which it does on another host."""

    rank: int
    tensor_rank: int
    stage: int
    instance: Instance
    host: int = 0
    """0 is Triton's own."""


@dataclass(frozen=True)
class ReplicaLayout:
    index: int
    ranks: tuple[RankPlacement, ...]

    @property
    def here(self) -> tuple[RankPlacement, ...]:
        """Those on Triton's own host."""
        return tuple(placement for placement in self.ranks if placement.host == 0)

    @property
    def leader(self) -> Instance:
        return self.ranks[0].instance

    @property
    def passive(self) -> tuple[Instance, ...]:
        return tuple(placement.instance for placement in self.here[1:])


def replicas(config: ModelConfig) -> tuple[ReplicaLayout, ...]:
    """Lays the model's ranks out over its instances.

    Raises:
        ConfigError: the number of passive instances is not replicas x (ranks here - 1).
    """
    active = _instances(config, passive=False)
    passive = _instances(config, passive=True)
    shards = config.ranks_per_host - 1
    if not active or len(passive) != len(active) * shards:
        sizes = config.parameters
        raise ConfigError(
            f"tensor_parallel_size {sizes.tensor_parallel_size} x pipeline_parallel_size "
            f"{sizes.pipeline_parallel_size} = {config.world_size} ranks a replica, so "
            f"{len(active)} active instances need {len(active) * shards} passive ones; "
            f"instance_group has {len(active)} active and {len(passive)} passive"
            f"{_on_one_host(config)}"
        )
    return tuple(
        _replica(config, index, (lead, *passive[index * shards : (index + 1) * shards]))
        for index, lead in enumerate(active)
    )


def including(config: ModelConfig, instance: Instance) -> ModelConfig:
    """The config with so many instances that this one exists. Where only their number changes,
    Triton keeps those that it has and hands the new ones the old config.

    Raises:
        ConfigError: it does not follow which passive instances are to be the new replica's.
    """
    name, _, number = instance.name.rpartition("_")
    groups = config.instance_groups
    active = [group for group in groups if not group.passive]
    mine = next((group for group in active if group.name == name), None)
    if mine is None or int(number) < mine.count:
        return config
    if len(active) > 1 or len(groups) > 2:
        raise ConfigError(
            "replicas are added while others serve only where instance_group has one active and"
            " one passive group; change something else as well, so that all are started anew"
        )
    counts = {mine.name: int(number) + 1}
    leaders = counts[mine.name] * len(_devices(mine))
    for shards in groups:
        if shards.passive:
            counts[shards.name] = leaders * (config.ranks_per_host - 1) // len(_devices(shards))
    return replace(
        config, instance_groups=tuple(replace(group, count=counts[group.name]) for group in groups)
    )


def _replica(config: ModelConfig, index: int, instances: tuple[Instance, ...]) -> ReplicaLayout:
    _check_devices(config, index, [instance.device for instance in instances])
    width, each = config.parameters.tensor_parallel_size, config.ranks_per_host
    return ReplicaLayout(
        index,
        tuple(
            RankPlacement(rank, rank % width, rank // width, instances[rank % each], rank // each)
            for rank in range(config.world_size)
        ),
    )


def _on_one_host(config: ModelConfig) -> str:
    hosts = config.parameters.hosts
    here = config.ranks_per_host
    return (
        f"; of {hosts} hosts only Triton's own has instances, {here} a replica" if hosts > 1 else ""
    )


def _check_devices(config: ModelConfig, index: int, devices: list[int]) -> None:
    on_gpus = [device for device in devices if device != CPU]
    if 0 < len(on_gpus) < len(devices):
        raise ConfigError(
            f"replica {index} has ranks on GPUs and on the CPU, which cannot meet: give its"
            " instances in instance_group one kind"
        )
    if config.parameters.collectives != "gloo" and len(set(on_gpus)) < len(on_gpus):
        raise ConfigError(
            f"replica {index} has its ranks on GPUs {on_gpus}; NCCL refuses two ranks on one GPU:"
            " give each its own in instance_group"
        )


def _instances(config: ModelConfig, passive: bool) -> list[Instance]:
    return [
        Instance(f"{group.name}_{index}", device)
        for group in config.instance_groups
        if group.passive == passive
        for index in range(group.count)
        for device in _devices(group)
    ]


def _devices(group: InstanceGroup) -> tuple[int, ...]:
    return group.gpus if group.kind == "KIND_GPU" else (CPU,)
