"""All-reduce between processes: our collectives against flat gloo, in turns, in one run.

On one host over shared memory; and over two hosts of two ranks each, which are network namespaces
where they can be made (root), else loopback.
"""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch._C._distributed_c10d import FileStore

from python_mp.rank.collectives import Communicator, connect
from tests.support.network import Host, network, why_not

Enter = Callable[[], AbstractContextManager[None]]
BYTES = [1536, 49_152, 196_608, 786_432]
CASES = tuple(itertools.product([torch.float32, torch.bfloat16], BYTES))
ROUNDS, CALLS, GLOO_CALLS = 20, 100, 10


@dataclass(frozen=True)
class Ranks:
    """
    Attributes:
        size: of them.
        where: the address of each host; one without an address is this machine.
        cores: of each rank; none where they are left alone.
        cases: dtypes, and bytes.
    """

    size: int
    where: tuple[str, ...] = ("",)
    cores: tuple[int, ...] = ()
    cases: tuple[tuple[torch.dtype, int], ...] = CASES

    @property
    def hosts(self) -> int:
        return len(self.where)

    def host(self, rank: int) -> int:
        return rank * self.hosts // self.size


def run() -> list[dict[str, Any]]:
    """One record a size, dtype and number of ranks; times are medians in microseconds."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    sizes = [size for size in (2, 4) if size <= len(cores)]
    records = [r for size in sizes for r in _measure(Ranks(size, cores=cores[:size]))]
    return records + over_two_hosts()


def over_two_hosts(cases: tuple[tuple[torch.dtype, int], ...] = CASES) -> list[dict[str, Any]]:
    """The records of two hosts alone."""
    with _two_hosts() as hosts:
        enter: list[Enter] = [host.entered for host in hosts]
        enter = enter or [nullcontext] * 2
        where = tuple(host.address for host in hosts) or ("127.0.0.1",) * 2
        return _measure(Ranks(4, where, cases=cases), enter)


def main() -> None:
    columns = "ranks", "dtype", "bytes", "ours (us)", "gloo (us)", "share of gloo's"
    table = Table(*columns, title="all-reduce")
    for record in run():
        times = (f"{record['ours_us']:.1f}", f"{record['gloo_us']:.0f}", f"{record['share']:.2f}")
        table.add_row(record["ranks"], record["dtype"], str(record["bytes"]), *times)
    Console().print(table)


def _two_hosts() -> AbstractContextManager[Sequence[Host]]:
    if reason := why_not():
        Console().print(f"Two hosts are loopback here: {reason}")
        return nullcontext(())
    return network(2)


def _measure(ranks: Ranks, enter: Sequence[Enter] = (nullcontext,)) -> list[dict[str, Any]]:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        for host in range(ranks.hosts):
            Path(folder, f"region{host}").touch()
        processes = []
        for rank in range(ranks.size):
            process = context.Process(target=_rank, args=(rank, ranks, folder, theirs), daemon=True)
            with enter[ranks.host(rank)]():
                process.start()
            processes.append(process)
        theirs.close()  # so that `recv` fails, and does not wait, if the ranks do
        records: list[dict[str, Any]] = ours.recv()
        for process in processes:
            process.join()
    return records


def _rank(rank: int, ranks: Ranks, folder: str, link: Any) -> None:
    torch.set_num_threads(1)
    if ranks.cores:
        os.sched_setaffinity(0, {ranks.cores[rank]})
    where: dict[str, Any] = {"tensor_rank": rank, "tensor_size": ranks.size}
    stores: list[Any] = [f"{folder}/ours", f"{folder}/gloo"]
    if ranks.hosts > 1:
        where |= {"hosts": ranks.hosts, "address": ranks.where[ranks.host(rank)]}
        stores = [FileStore(path, -1) for path in stores]
    ours = connect("shm", **where, region=f"{folder}/region{ranks.host(rank)}", store=stores[0])
    gloo = connect("gloo", **where, store=stores[1])
    name = str(ranks.size) if ranks.hosts == 1 else f"{ranks.hosts} hosts x {ranks.size // 2}"
    records = [{"ranks": name} | _compare(ours, gloo, *case) for case in ranks.cases]
    if rank == 0:
        link.send(records)
    gloo.close()
    ours.close()


def _compare(
    ours: Communicator, gloo: Communicator, dtype: torch.dtype, nbytes: int
) -> dict[str, Any]:
    x = torch.zeros(nbytes // dtype.itemsize, dtype=dtype)
    times: dict[str, list[float]] = {"ours": [], "gloo": []}
    for _ in range(ROUNDS):
        times["ours"] += _time(ours, x, CALLS)
        times["gloo"] += _time(gloo, x, GLOO_CALLS)
    fast, slow = median(times["ours"]), median(times["gloo"])
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": nbytes,
        "ours_us": fast * 1e6,
        "gloo_us": slow * 1e6,
        "share": fast / slow,
    }


def _time(communicator: Communicator, x: torch.Tensor, calls: int) -> list[float]:
    communicator.all_reduce(x)  # the ranks meet
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        communicator.all_reduce(x)
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
