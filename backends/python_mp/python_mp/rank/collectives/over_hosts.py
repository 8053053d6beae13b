"""Collectives between CPU ranks of several hosts.

Inside a host the ranks meet in shared memory; what they have goes from its first rank to the first
one of each other host of the stage, and what comes back is shown to all. So each host sends its sum
once to each other, whatever its number of ranks.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from . import stage_link
from .communicator import Communicator, Place
from .meeting import meet
from .stage_link import Outgoing, as_bytes
from .tcp_link import Ended, Expecting, Sending, TcpLink, complete

_HEADER = struct.Struct("<IIQ")
"""Which collective, how arranged, bytes: the same on every rank."""
_SUM, _GATHER, _BROADCAST = range(1, 4)


class OverHosts:
    """A `Communicator`.

    Args:
        inside: that of the ranks of this host.
        store, address: see `meet`.
        region: this host's.
        patience: for how many seconds a rank whose peer is gone leaves it to the parent to end the
            group.
    """

    def __init__(
        self,
        place: Place,
        inside: Communicator,
        *,
        store: Store,
        address: str,
        region: str,
        patience: float,
    ) -> None:
        self.rank, self.size = place.rank, place.size
        self._place, self._inside = place, inside
        self._ended = Ended(region, patience)
        self._waited, self._operations = 0.0, 0
        found = meet(store, address, place.world_rank, peers(place))
        links = {peer: TcpLink(found[peer], peer, self._ended) for peer in found}
        self._links = links
        self._leads, self._crosses = inside.rank == 0, self.size > inside.size
        self._before = links.get(place.before) if place.stage else None
        behind = links.get(place.behind) if place.stage + 1 < place.stages else None
        self._outgoing = Outgoing(behind) if behind else None

    def all_reduce(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(f"all_reduce takes float32, bfloat16 or float16, not {x.dtype}")
        if self._crosses and x.dtype is not torch.float32:  # Rounded once, at the end.
            return x.copy_(self.all_reduce(x.float()))
        self._operations += 1
        self._inside.all_reduce(x)
        if not self._crosses:
            return x
        if self._leads:
            first, second, *others = self._exchanged(x, _SUM)
            total = first + second  # In the hosts' order, so that all have the same bits.
            for other in others:
                total += other
            x.copy_(total)
        return self._inside.broadcast(x)

    def all_gather(self, x: Tensor) -> Tensor:
        self._operations += 1
        local = self._inside.all_gather(x)
        if not self._crosses:
            return local
        if self._leads:
            output = torch.cat(self._exchanged(local, _GATHER), dim=-1)
        else:
            output = x.new_empty((*x.shape[:-1], self.size * x.shape[-1]))
        return self._inside.broadcast(output)

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        if not 0 <= source < self.size:
            raise ValueError(f"no rank {source} among {self.size}")
        self._operations += 1
        host, number = divmod(source, self._inside.size)
        is_near = self.rank // self._inside.size == host
        if is_near:
            self._inside.broadcast(x, number)
        if self._crosses and self._leads:
            self._tell(x) if is_near else self._hear(x, self._links[self._place.leaders[host]])
        return x if is_near else self._inside.broadcast(x)

    def send(self, x: Tensor) -> None:
        self._operations += 1
        if self._outgoing is None:
            self._inside.send(x)
            return
        with self._timed():
            self._outgoing.send(x)

    def receive(self) -> Tensor:
        self._operations += 1
        if self._before is None:
            return self._inside.receive()
        with self._timed():
            return stage_link.receive(self._before)

    def operations(self) -> int:
        return self._operations

    def wait_seconds(self) -> float:
        return self._waited + self._inside.wait_seconds()

    def close(self) -> None:
        if self._outgoing:
            self._outgoing.close()
        for link in self._links.values():
            link.close()
        self._ended.close()
        self._inside.close()

    def _exchanged(self, x: Tensor, what: int) -> list[Tensor]:
        """What every host has, in their order."""
        header, me = _header(what, x), self._place.world_rank
        parts = {each: x if each == me else torch.empty_like(x) for each in self._place.leaders}
        links = [(self._links[each], part) for each, part in parts.items() if each != me]
        out = [Sending(link, (memoryview(header), as_bytes(x))) for link, _ in links]
        with self._timed():
            complete([*out, *(Expecting(link, header, as_bytes(part)) for link, part in links)])
        return list(parts.values())

    def _tell(self, x: Tensor) -> None:
        header, others = _header(_BROADCAST, x), set(self._place.leaders) & set(self._links)
        out = (memoryview(header), as_bytes(x))
        with self._timed():
            complete([Sending(self._links[each], out) for each in others])

    def _hear(self, x: Tensor, link: TcpLink) -> None:
        with self._timed():
            complete([Expecting(link, _header(_BROADCAST, x), as_bytes(x))])

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start


def peers(place: Place) -> list[int]:
    """World ranks on other hosts to which this one needs a connection."""
    wanted = place.leaders if place.inside.rank == 0 else []
    wanted += [place.before] if place.stage else []
    wanted += [place.behind] if place.stage + 1 < place.stages else []
    return [each for each in wanted if not place.is_near(each)]


def _header(what: int, x: Tensor) -> bytes:
    row = x.shape[-1] * x.itemsize if x.dim() else 0
    return _HEADER.pack(what, row & 0xFFFFFFFF, x.nbytes)
