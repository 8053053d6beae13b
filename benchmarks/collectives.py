"""All-reduce between processes of this host: shared memory against gloo, in turns, in one run."""

from __future__ import annotations

import multiprocessing as mp
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from python_mp.rank.collectives import Communicator, connect

BYTES = [1536, 49_152, 196_608, 786_432]
DTYPES = [torch.float32, torch.bfloat16]
ROUNDS, SHM_CALLS, GLOO_CALLS = 20, 100, 10


def run() -> list[dict[str, Any]]:
    """One record a size, dtype and number of ranks; times are medians in microseconds."""
    cores = sorted(os.sched_getaffinity(0))
    return [record for size in (2, 4) if size <= len(cores) for record in _measure(size, cores)]


def main() -> None:
    table = Table(
        "ranks", "dtype", "bytes", "shm (us)", "gloo (us)", "times faster", title="all-reduce"
    )
    for record in run():
        speedup = f"{record['speedup']:.0f}"
        times = (f"{record['shm_us']:.1f}", f"{record['gloo_us']:.0f}")
        table.add_row(str(record["ranks"]), record["dtype"], str(record["bytes"]), *times, speedup)
    Console().print(table)


def _measure(size: int, cores: list[int]) -> list[dict[str, Any]]:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "region").touch()
        ranks = [
            context.Process(
                target=_rank, args=(rank, size, cores[rank], folder, theirs), daemon=True
            )
            for rank in range(size)
        ]
        for rank in ranks:
            rank.start()
        theirs.close()  # so that `recv` fails, and does not wait, if the ranks do
        records: list[dict[str, Any]] = ours.recv()
        for rank in ranks:
            rank.join()
    return records


def _rank(rank: int, size: int, core: int, folder: str, link: Any) -> None:
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {core})
    place: dict[str, Any] = {"tensor_rank": rank, "tensor_size": size}
    shm = connect("shm", **place, region=f"{folder}/region")
    gloo = connect("gloo", **place, store=f"{folder}/store")
    records = [_compare(shm, gloo, dtype, nbytes) for dtype in DTYPES for nbytes in BYTES]
    if rank == 0:
        link.send(records)
    gloo.close()
    shm.close()


def _compare(
    shm: Communicator, gloo: Communicator, dtype: torch.dtype, nbytes: int
) -> dict[str, Any]:
    x = torch.zeros(nbytes // dtype.itemsize, dtype=dtype)
    times: dict[str, list[float]] = {"shm": [], "gloo": []}
    for _ in range(ROUNDS):
        times["shm"] += _time(shm, x, SHM_CALLS)
        times["gloo"] += _time(gloo, x, GLOO_CALLS)
    fast, slow = median(times["shm"]), median(times["gloo"])
    return {
        "ranks": shm.size,
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": nbytes,
        "shm_us": fast * 1e6,
        "gloo_us": slow * 1e6,
        "speedup": slow / fast,
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
