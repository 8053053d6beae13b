"""Stage `shard`: from a checkpoint to one safetensors file a rank, with that rank's slices only.

The layers themselves say what they need: each rank's module is built once, and what it was given is
written down. So any module that keeps the contract is sharded, with no list of names anywhere.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from build_scripts import (
    checkpoint_tokenizer,
    fetch,
    layer_weights,
    storage,
    tasks,
    tokenizer_files,
)
from build_scripts.errors import BuildError
from build_scripts.job import Job
from python_mp.sharding.families.task import WEIGHTS as HEAD

if TYPE_CHECKING:
    import torch

    from python_mp.sharding.families.isolation import Isolation
    from python_mp.sharding.weights import Weights

NEEDS = ("fetch",)
TOOLS = ("safetensors", "torch", "transformers")


def inputs(job: Job) -> dict[str, object]:
    return {"layout": asdict(job.layout), "dtype": job.weights_dtype}


def run(job: Job, out: Path, progress: Progress) -> None:
    """Writes `rankR.safetensors` for every rank, the module.py or config.json it is read by, and
    for a task what follows the hidden states."""
    import torch

    from build_scripts import ranks
    from python_mp.model.errors import PythonMpError
    from python_mp.rank.collectives.communicator import Alone
    from python_mp.sharding import source
    from python_mp.sharding.slices import Recorder

    add_code(job, out)
    task = f"{job.name}: shard"
    try:
        model = source.read(out)
        isolation = _isolation(job, out)
        for rank in progress.track(range(job.world_size), description=task):
            shard = ranks.shard(job, rank, out, Alone())
            recorder = Recorder(weights(job, shard.dtype))
            with torch.no_grad():
                module = model.build(replace(shard, given=recorder))
            if isolation and shard.rank == 0:
                isolation.through(getattr(module, "encoder", module))
            del module  # Its weights need not be there twice.
            recorder.save(out / f"rank{rank}.safetensors")
        if model.finish and not model.generates:
            recorder = Recorder(_head_weights(job))
            model.finish(replace(ranks.shard(job, 0, out, Alone()), given=recorder))
            recorder.save(out / HEAD)
    except PythonMpError as error:
        raise BuildError(f"{job.name}: {error}") from error


def _isolation(job: Job, out: Path) -> Isolation | None:
    """For a model of transformers, whose code nobody has written for packed rows."""
    import torch

    if job.recipe.family != "transformers":
        return None
    from python_mp.sharding.families import isolation, skeleton, transformers

    config = transformers.read(out / "config.json")
    rows = skeleton.rows(config, job.task)
    image = [each.dims for each in job.config.inputs if each.name == "PIXEL_VALUES"]
    return isolation.Isolation(config, rows, torch.device("cpu"), job.world_size, *image)


def weights(job: Job, dtype: torch.dtype) -> Weights:
    """The job's checkpoint. Of a Hugging Face model whose tensors bear the module's names each is
    cut from the file; any other is loaded by transformers, which knows the names of old."""
    import torch

    from python_mp.sharding.weights import Checkpoint, Tensors

    folder, cpu = fetch.read(job).folder, torch.device("cpu")
    if job.recipe.family == "transformers" and not fetch.checkpoint(job).bears_its_names:
        return Tensors(fetch.checkpoint(job).model().state_dict(), dtype)
    return Checkpoint(folder, dtype, cpu)


def _head_weights(job: Job) -> Weights:
    """Of what follows the hidden states, in float32."""
    import torch

    from python_mp.sharding.weights import Tensors

    if job.task != "embed":
        return weights(job, torch.float32)
    checkpoint = fetch.checkpoint(job)
    found = layer_weights.read(checkpoint.path, checkpoint.settings.layers)
    return Tensors(found, torch.float32)


def add_code(job: Job, out: Path) -> None:
    """What every artifact needs beside its weights or graphs: the user's module.py, or the family's
    config.json and what follows its hidden states."""
    storage.copy(code(job), out)
    if job.recipe.family != "transformers":
        return
    checkpoint = fetch.checkpoint(job)
    if found := tasks.of(job, checkpoint):
        found.write(out)
    if job.task == "generate":  # For the front, which looks for texts that end an answer.
        text = checkpoint_tokenizer.written(checkpoint)
        (out / tokenizer_files.FILE).write_text(text)
    if (head := job.output("shards") / HEAD).exists() and head.parent != out:
        shutil.copyfile(head, out / HEAD)


def code(job: Job) -> dict[str, Path]:
    """What computes with any engine: the user's module and what it imports from beside it, or a
    checkpoint's config."""
    return job.code_files or {"config.json": fetch.read(job).folder / "config.json"}


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("shards"))
