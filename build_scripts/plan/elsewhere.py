"""Layouts on a machine that is not here: what they are expected to do, and by which constants."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from build_scripts import checkpoint_folder, fetch
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.new.pbtxt_parts import Layout
from build_scripts.plan import machines
from build_scripts.plan.alpha_beta import Forecast, Machine, Work, forecast
from build_scripts.plan.candidates import powers
from build_scripts.plan.machines import CONSTANTS, Constant, Size
from build_scripts.plan.workload import Request
from python_mp.model.parameters import MOST_RANKS

IN_FLIGHT = 64
"""Requests for each device."""
SHOWN = 12
NBYTES = 2
"""Of a number in 16 bits; of one that a core computes with twice as many."""
TABLES = "embed", "wte", "wpe"
"""In the names of weights that are looked up, not multiplied."""


def size(job: Job) -> Size:
    """Raises BuildError for a module of one's own, whose layers are not known, and for images."""
    if job.recipe.family != "transformers" or not job.config.has_ragged_input:
        raise BuildError(f"{job.model}: --machine is for checkpoints that read texts")
    folder = fetch.read(job).folder
    said = checkpoint_folder.Checkpoint(folder, job.task).config
    shapes = checkpoint_folder.tensors(folder)
    linear = [
        math.prod(shape)
        for name, shape in shapes.items()
        if len(shape) > 1 and not any(table in name for table in TABLES)
    ]
    try:
        layers, width = int(said["num_hidden_layers"]), int(said["hidden_size"])
        heads = int(said["num_attention_heads"])
    except (KeyError, TypeError):
        raise BuildError(f"{folder}/config.json does not say layers, width and heads") from None
    return Size(sum(linear), layers, width, heads, NBYTES * sum(map(math.prod, shapes.values())))


def layouts(there: Machine, of: Size) -> Iterator[Layout]:
    """All powers of two that the model can be split by, on as many devices as are there."""
    devices = there.devices * there.hosts
    for tp in powers(min(devices, of.heads, MOST_RANKS)):
        for pp in powers(min(devices // tp, of.layers, MOST_RANKS // tp)):
            on_gpus = not there.is_shared
            fits = not on_gpus or of.nbytes / (tp * pp) < CONSTANTS["memory"].value
            if of.heads % tp == 0 and fits:
                yield Layout(tp, pp, devices // (tp * pp), on_gpus)


def show(job: Job, words: str, requests: Sequence[Request], in_flight: int | None) -> None:
    """Raises BuildError where the words are no machine, or the model fits none of it."""
    said, of = machines.read(words), size(job)
    there = machines.machine(said, of)
    devices = there.devices * there.hosts
    lengths = [max(array.shape[1] for array in each.values()) for each in requests]
    bound = job.config.parameters.max_batch_tokens
    count = in_flight or IN_FLIGHT * devices
    wide = 2 if there.is_shared else 1
    work = Work(of.layers, of.width * NBYTES * wide, float(np.mean(lengths)), count, bound)
    found = [(layout, forecast(there, work, layout)) for layout in layouts(there, of)]
    if not found:
        raise BuildError(
            f"{job.model} does not fit the memory of {devices} GPUs, split as it can be"
        )
    console = Console(soft_wrap=True)
    dtype = "float32" if there.is_shared else "bfloat16"
    console.print(f"{job.model} in {dtype}, {count} requests in flight, none of it measured here:")
    console.print(table(found, there.devices), *_sources(machines.constants(said)), sep="\n")


def table(found: Sequence[tuple[Layout, Forecast]], devices: int) -> Table:
    """The fastest, and the one that answers first; `devices` are a host's."""
    best = sorted(found, key=lambda each: (-each[1].rate, each[1].latency))[:SHOWN]
    quick = min(found, key=lambda each: each[1].latency)
    columns = "tp", "pp", "hosts", "replicas", "requests/s", "one alone, ms", "limit"
    made = Table(*columns, box=box.SIMPLE_HEAD)
    for layout, each in dict.fromkeys([*best, quick]):
        hosts = -(-layout.world_size // devices)
        sizes = layout.tensor_parallel_size, layout.pipeline_parallel_size, hosts, layout.replicas
        figures = f"{each.rate:.0f}", f"{each.latency * 1e3:.2f}", each.limit
        made.add_row(*map(str, sizes), *figures)
    return made


def _sources(constants: Mapping[str, Constant]) -> Iterator[str]:
    yield "By these constants:"
    for name, each in constants.items():
        yield f"  {name}: {each.value:g} {each.unit} ({each.source})"
