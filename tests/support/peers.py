"""The ranks of a stage in threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from python_mp.rank.collectives.communicator import Alone

T = TypeVar("T")


class Peers:
    """What they share."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=60.0)
        self._given: list[Tensor] = [torch.empty(0)] * size

    def abort(self) -> None:
        self._barrier.abort()

    def add_up(self, rank: int, x: Tensor) -> Tensor:
        self._given[rank] = x.clone()
        self._barrier.wait()
        total = torch.stack(self._given).sum(0)
        self._barrier.wait()
        return x.copy_(total)

    def gather(self, rank: int, x: Tensor) -> Tensor:
        self._given[rank] = x
        self._barrier.wait()
        all_of_it = torch.cat(self._given, -1)
        self._barrier.wait()
        return all_of_it


def together(size: int, rank: Callable[[int, Peers], T]) -> list[T]:
    """What each rank's function returns. Where one raises, nobody waits for it."""
    peers = Peers(size)

    def run(number: int) -> T:
        try:
            return rank(number, peers)
        except BaseException:
            peers.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, number) for number in range(size)]
    raised = [error for each in futures if (error := each.exception())]
    if raised:
        raise next(e for e in raised if not isinstance(e, threading.BrokenBarrierError))
    return [each.result() for each in futures]


class Peer(Alone):
    """One of them."""

    def __init__(self, peers: Peers, rank: int) -> None:
        super().__init__()
        self._peers, self._rank = peers, rank

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._peers.add_up(self._rank, x)

    def all_gather(self, x: Tensor) -> Tensor:
        return self._peers.gather(self._rank, x)
