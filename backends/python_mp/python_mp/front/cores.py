"""Which cores each rank gets."""

from __future__ import annotations

from collections.abc import Sequence

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
