"""Work that is done for every rank of a model, several at a time, each in its own process."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import as_completed
from pathlib import Path

import torch
from rich.progress import Progress

from build_scripts import workers
from build_scripts.job import Job
from python_mp.rank.collectives import Communicator
from python_mp.rank.stage import COMPUTE_DTYPES
from python_mp.sharding.shard import Shard

Work = Callable[[Job, int, Path], None]


SIDE_BY_SIDE = 1 << 28
"""Bytes of all ranks' weights. With more each rank is worked on alone, by a process that ends with
it: two at a time would hold the whole model once more, beside what each process takes itself."""


def each(job: Job, work: Work, out: Path, progress: Progress, what: str) -> None:
    """Calls `work(job, rank, out)` for every rank; raises what the first failing one raised."""
    task = progress.add_task(f"{job.name}: {what}", total=job.world_size)
    weights = sum(path.stat().st_size for path in job.output("shards").glob("*.safetensors"))
    alone = weights > SIDE_BY_SIDE
    most = 1 if alone else min(job.world_size, len(os.sched_getaffinity(0)))
    with workers.pool(most, 1 if alone else None) as pool:
        futures = [pool.submit(work, job, rank, out) for rank in range(job.world_size)]
        for future in as_completed(futures):
            future.result()
            progress.advance(task)


def shard(
    job: Job, rank: int, folder: Path, communicator: Communicator, device: str = "cpu"
) -> Shard:
    """The place of world rank `rank`, with the weights that lie in `folder`."""
    sizes = job.layout
    return Shard(
        rank=rank % sizes.tensor_parallel_size,
        size=sizes.tensor_parallel_size,
        stage=rank // sizes.tensor_parallel_size,
        stages=sizes.pipeline_parallel_size,
        dtype=COMPUTE_DTYPES[job.weights_dtype],
        device=torch.device(device),
        folder=folder,
        parameters=job.config.module_parameters,
        communicator=communicator,
        inputs=job.config.batch_inputs,
        outputs=tuple(spec.name for spec in job.config.outputs),
        panels=False,
    )
