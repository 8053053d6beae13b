"""Processes that meet in collectives, as the ranks of one replica do."""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import reduce
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import FileStore

from python_mp.rank.collectives import connect
from tests.support.network import Host, standing_on

# Forked from a process that has torch already, a rank starts in milliseconds.
context = mp.get_context("forkserver")
context.set_forkserver_preload(["torch", "python_mp.rank.collectives"])

Program = Callable[..., Any]
LIMIT = 60.0


def _rank_main(link: Connection, program: Program, kind: str, where: dict[str, Any]) -> None:
    namespace = where.pop("namespace")
    with standing_on(namespace) if namespace else nullcontext():
        _run(link, program, kind, where)


def _run(link: Connection, program: Program, kind: str, where: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if kind == "unbuilt":
        kind = "auto"
        sys.modules["python_mp.rank._shm"] = None  # type: ignore[assignment]
    if where.get("hosts"):
        where["store"] = FileStore(where["store"], -1)
    communicator = connect(kind, **where)
    try:
        link.send(("done", program(communicator, where["stage"], link)))
    except BaseException as error:
        link.send(("raised", (type(error), traceback.format_exc())))
    else:
        communicator.close()


class Ranks:
    """The ranks of one replica running `program(communicator, stage, link)`. They stand on some
    hosts, or on so many that have nothing in common but loopback."""

    def __init__(
        self,
        folder: Path,
        program: Program,
        size: int,
        stages: int = 1,
        kind: str = "shm",
        hosts: int = 1,
        hang_seconds: int = 0,
        on: Sequence[Host] = (),
    ) -> None:
        hosts = len(on) or hosts
        self.regions = [os.memfd_create("region") for _ in range(hosts)]
        self.links: list[Connection] = []
        self.processes: list[BaseProcess] = []
        for stage, rank in itertools.product(range(stages), range(size)):
            number = stage * size + rank
            host = number * hosts // (size * stages)
            where = {
                "namespace": on[host].namespace if on else "",
                "tensor_rank": rank,
                "tensor_size": size,
                "stage": stage,
                "stages": stages,
                "region": f"/proc/{os.getpid()}/fd/{self.regions[host]}",
                "store": str(folder / "store"),
                "hang_seconds": hang_seconds,
            }
            if hosts > 1:
                where |= {"hosts": hosts, "address": on[host].address if on else "127.0.0.1"}
            ours, theirs = context.Pipe()
            process = context.Process(target=_rank_main, args=(theirs, program, kind, where))
            process.start()
            theirs.close()
            self.links.append(ours)
            self.processes.append(process)

    def get(self, rank: int) -> tuple[str, Any]:
        """The rank's next message."""
        assert wait([self.links[rank]], LIMIT), f"rank {rank} says nothing for {LIMIT} s"
        message: tuple[str, Any] = self.links[rank].recv()
        return message

    def hears(self, rank: int, wanted: str) -> None:
        """And nothing more: it waits for its peers then."""
        assert self.get(rank)[0] == wanted
        assert not wait([self.links[rank]], 0.1)

    def raised(self, rank: int) -> tuple[type[BaseException], str]:
        kind, found = self.get(rank)
        assert kind == "raised"
        return found  # type: ignore[no-any-return]

    def results(self) -> list[Any]:
        messages = [self.get(rank) for rank in range(len(self.links))]
        assert [kind for kind, _ in messages] == ["done"] * len(messages), messages
        return [result for _, result in messages]

    def abort(self) -> None:
        for region in self.regions:
            os.pwrite(region, b"\1\0\0\0", 0)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(10)
        for region in self.regions:
            os.close(region)


def values(seed: int, rank: int, shape: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return (3 * torch.randn(shape, generator=generator)).to(dtype)


def in_rank_order(parts: list[Tensor], width: int = 64) -> Tensor:
    """The specified sum: float32, rank after rank, host after host, rounded once."""
    hosts = [parts[at : at + width] for at in range(0, len(parts), width)]
    totals = [reduce(torch.add, (part.float() for part in host)) for host in hosts]
    return reduce(torch.add, totals).to(parts[0].dtype)
