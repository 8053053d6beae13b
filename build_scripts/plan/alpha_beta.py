"""What a layout does on a machine, by a few constants of machine and model: an alpha-beta model.

A message takes alpha + bytes / beta seconds (Hockney 1994, "The communication challenge for MPP");
an all-reduce over a ring of p ranks 2 (p - 1) hops, each with a p-th of the bytes (Patarasuk and
Yuan 2009, "Bandwidth optimal all-reduce algorithms"). Several hosts reduce inside first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from build_scripts.new.pbtxt_parts import Layout

ALL_REDUCES = 2
"""Of a layer: after attention and after its MLP."""


@dataclass(frozen=True)
class Link:
    """One way of sending: seconds to begin a collective, seconds a hop, and bytes a second."""

    start: float
    hop: float
    bandwidth: float


@dataclass(frozen=True)
class Machine:
    """Times are in seconds.

    Attributes:
        devices, hosts: devices of a host, and hosts.
        batch: of one device for a batch of the whole model, however small.
        token: of one device for each token in it.
        undivided: the share of both that tensor parallelism leaves whole.
        single: the share of both that one thread of a rank does alone.
        near, far: inside a host and between hosts; of several protocols the best is taken.
        request: of a host's core for a request: protocols, Triton, front.
        cores: of a host.
        is_shared: the ranks compute on these cores, too; a device is a core. Then the first rank of
            a host sends for all beside it, whereas each GPU sends its part.
    """

    devices: int
    hosts: int
    batch: float
    token: float
    undivided: float
    single: float
    near: Sequence[Link]
    far: Sequence[Link]
    request: float
    cores: int
    is_shared: bool


@dataclass(frozen=True)
class Work:
    """
    Attributes:
        layers: of the model.
        row_nbytes: of one token's hidden state.
        tokens: of a request, on average.
        in_flight: requests.
        most: tokens of a batch.
    """

    layers: int
    row_nbytes: int
    tokens: float
    in_flight: int
    most: int


@dataclass(frozen=True)
class Forecast:
    """
    Attributes:
        rate: requests a second.
        latency: of one that is alone, in seconds.
        limit: what the rate ends at: "devices", "collectives", "clients" or "host".
    """

    rate: float
    latency: float
    limit: str


def all_reduce(machine: Machine, ranks: int, nbytes: float) -> float:
    """Seconds."""
    inside = min(ranks, machine.devices)
    hosts = -(-ranks // machine.devices)
    sent = nbytes if machine.is_shared else nbytes / inside
    return _ring(machine.near, inside, nbytes) + _ring(machine.far, hosts, sent)


def forecast(machine: Machine, work: Work, layout: Layout, threads: int = 1) -> Forecast:
    """
    Args:
        threads: of each rank.
    """
    stages, replicas = layout.pipeline_parallel_size, layout.replicas
    each = work.in_flight / replicas
    count = max(1.0, min(each / (stages + 1), work.most / work.tokens))
    computed, met = _stage(machine, work, layout, count, threads)
    bounds = {
        "devices": replicas * count / (computed + met),
        "clients": max(1.0, each)
        * min(replicas, work.in_flight)
        / _alone(machine, work, layout, threads),
        "host": machine.cores * machine.hosts / machine.request,
    }
    if machine.is_shared:
        busy = layout.world_size * threads * (computed + met) / count
        bounds["host"] = machine.cores * machine.hosts / (machine.request + busy)
    limit = min(bounds, key=lambda name: bounds[name])
    name = "collectives" if limit == "devices" and met > computed else limit
    return Forecast(bounds[limit], _alone(machine, work, layout, threads), name)


def _alone(machine: Machine, work: Work, layout: Layout, threads: int) -> float:
    """Latency of a request with nothing beside it."""
    stage = sum(_stage(machine, work, layout, 1.0, threads))
    return machine.request + layout.pipeline_parallel_size * stage


def _stage(
    machine: Machine, work: Work, layout: Layout, count: float, threads: int
) -> tuple[float, float]:
    """Seconds of a stage for a batch of `count` requests: computing, and meeting others."""
    tp, pp = layout.tensor_parallel_size, layout.pipeline_parallel_size
    whole = (machine.batch + machine.token * count * work.tokens) / pp
    computed = whole * _amdahl(machine.undivided, tp) * _amdahl(machine.single, threads)
    nbytes = count * work.tokens * work.row_nbytes
    met = ALL_REDUCES * work.layers / pp * all_reduce(machine, tp, nbytes)
    if pp > 1:
        is_near = layout.world_size <= machine.devices
        met += min(_message(link, nbytes) for link in (machine.near if is_near else machine.far))
    return computed, met


def _amdahl(alone: float, workers: int) -> float:
    return alone + (1 - alone) / workers


def _ring(links: Sequence[Link], ranks: int, nbytes: float) -> float:
    if ranks < 2:
        return 0.0
    hops = 2 * (ranks - 1)
    return min(link.start + hops * (link.hop + nbytes / ranks / link.bandwidth) for link in links)


def _message(link: Link, nbytes: float) -> float:
    return link.start + link.hop + nbytes / link.bandwidth
