"""Which cores each rank gets, and how many threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...machine import cgroup

CpuSet = tuple[int, ...]


def share(inherited: Sequence[CpuSet]) -> list[CpuSet]:
    """Shares cores out among ranks whose instances inherited the same ones.

    An instance with a host policy of its own keeps its cores. Ranks with one set between them, as
    without any policy, get a block each: (0-3), (0-3) -> (0, 1), (2, 3). With more ranks than cores
    they take turns.
    """
    members: dict[CpuSet, list[int]] = {}
    for rank, cpus in enumerate(inherited):
        members.setdefault(tuple(sorted(cpus)), []).append(rank)
    shares: list[CpuSet] = [()] * len(inherited)
    for cpus, ranks in members.items():
        for index, rank in enumerate(ranks):
            start, stop = (len(cpus) * at // len(ranks) for at in (index, index + 1))
            crowded = len(ranks) > len(cpus)
            shares[rank] = (cpus[index % len(cpus)],) if crowded else cpus[start:stop]
    return shares


def threads(cpus: CpuSet, ranks: int, quota: float | None) -> int:
    """How many threads one of `ranks`, those of all replicas, computes with: one a core, but all
    together no more than the container may use."""
    return len(cpus) if quota is None else max(1, min(len(cpus), int(quota / ranks)))


def quota(cgroups: Path = cgroup.CGROUPS, membership: Path = cgroup.MEMBERSHIP) -> float | None:
    """The processors that this container may use on average; None without a limit.

    A container's limit changes neither its affinity nor what the kernel says of its cores.
    """
    return cgroup.cpus(cgroups, membership)
