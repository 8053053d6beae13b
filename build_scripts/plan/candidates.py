"""What can be chosen for a model, one value an axis, and what its files say at present."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from build_scripts import storage, triton_config
from build_scripts.job import Job
from build_scripts.new.pbtxt_parts import Layout
from build_scripts.recipe import Dtype, Engine
from python_mp.model import layout as layouts
from python_mp.model.parameters import ENGINES, MOST_RANKS

ON_CPU: Sequence[Engine] = ("torch", "onnxruntime", "aot_inductor")
ON_GPU: Sequence[Engine] = ("torch", "aot_inductor", "tensorrt")
TOKENS = (512, 1024, 2048, 4096, 8192, 16384)
DELAYS = (0, 500, 2000)
Change = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """
    Attributes:
        threads: of each rank; 0 for its share of the cores.
        max_batch_tokens: tokens, or rows of what has no lengths, that are computed at once.
        queue_delay_us: how long Triton's batcher waits for more requests, in microseconds.
    """

    engine: Engine
    dtype: Dtype
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    replicas: int = 1
    on_gpus: bool = False
    threads: int = 0
    max_batch_tokens: int = 4096
    queue_delay_us: int = 0

    @property
    def layout(self) -> Layout:
        sizes = self.tensor_parallel_size, self.pipeline_parallel_size, self.replicas
        return Layout(*sizes, self.on_gpus)

    @property
    def digest(self) -> str:
        return storage.digest(asdict(self))[:10]

    def __str__(self) -> str:
        parts = [f"{self.engine} {self.dtype}", f"tp{self.tensor_parallel_size}"]
        parts += [f"pp{self.pipeline_parallel_size}", f"x{self.replicas}"]
        parts += [f"threads {self.threads}"] * bool(self.threads)
        parts += [f"{self.max_batch_tokens} a batch"]
        parts += [f"delay {self.queue_delay_us} us"] * bool(self.queue_delay_us)
        return " ".join(parts)


def present(job: Job) -> Choice:
    """What recipe.toml and config.pbtxt say now."""
    said = job.config.parameters
    return Choice(
        job.recipe.engine,
        job.recipe.dtype,
        said.tensor_parallel_size,
        said.pipeline_parallel_size,
        len(layouts.replicas(job.config)),
        job.on_gpu,
        said.threads_per_rank,
        said.max_batch_tokens,
        triton_config.queue_delay(job.folder),
    )


def devices(job: Job) -> int:
    """GPUs, or the cores of this process, that ranks can be placed on."""
    if not job.on_gpu:
        return len(os.sched_getaffinity(0))
    import torch

    return torch.cuda.device_count()


def axes(job: Job, number: int) -> dict[str, list[Change]]:
    """What can be changed, on so many devices: first what decides most."""
    return {
        "engine": [*_engines(job)],
        "layout": [*_layouts(number)],
        "threads": [] if job.on_gpu else [{"threads": n} for n in (0, *powers(number))],
        "batch": [{"max_batch_tokens": n} for n in _bounds(job)],
        "delay": [{"queue_delay_us": n} for n in DELAYS],
    }


def changed(choice: Choice, change: Change) -> Choice:
    """Another layout has its own number of threads."""
    if "replicas" in change:
        change = {**change, "threads": 0}
    return replace(choice, **change)


def _engines(job: Job) -> Iterator[Change]:
    """With each dtype that the recipe has a bound for."""
    for engine in ON_GPU if job.on_gpu else ON_CPU:
        for dtype in ENGINES[engine]:
            if job.recipe.accuracy.bounds(dtype).given():  # type: ignore[arg-type]
                yield {"engine": engine, "dtype": dtype}


def _layouts(number: int) -> Iterator[Change]:
    """All powers of two, with as many replicas as there are devices for."""
    for tp in powers(number):
        for pp in powers(number // tp):
            if tp * pp <= MOST_RANKS:
                sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
                for replicas in sorted({1, number // (tp * pp)}):
                    yield {**sizes, "replicas": replicas}


def _bounds(job: Job) -> list[int]:
    """Of batches: none beyond the largest that the recipe builds for."""
    largest = job.recipe.shapes.sizes[-1]
    given = TOKENS if job.config.has_ragged_input else (8, 16, 32, 64, 128)
    return sorted({*(each for each in given if each < largest), largest})


def powers(most: int) -> list[int]:
    """Of two, from 1 on."""
    return [1 << n for n in range(max(1, most).bit_length())]
