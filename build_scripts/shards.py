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

from build_scripts import checkpoint_folder, fetch
from build_scripts.errors import BuildError
from build_scripts.job import Job

if TYPE_CHECKING:
    import torch

    from python_mp.sharding.weights import Weights

NEEDS = ("fetch",)
TOOLS = ("safetensors", "torch", "transformers")


def inputs(job: Job) -> dict[str, object]:
    return {"layout": asdict(job.layout), "dtype": job.weights_dtype}


def run(job: Job, out: Path, progress: Progress) -> None:
    """Writes `rankR.safetensors` for every rank, and the module.py or config.json it is read by."""
    import torch
    from safetensors.torch import save_file

    from build_scripts import ranks
    from python_mp.model.errors import PythonMpError
    from python_mp.rank.collectives.communicator import Alone
    from python_mp.sharding import source
    from python_mp.sharding.weights import Recorder

    add_code(job, out)
    task = f"{job.name}: shard"
    try:
        model = source.read(out)
        for rank in progress.track(range(job.world_size), description=task):
            shard = ranks.shard(job, rank, out, Alone())
            recorder = Recorder(weights(job, shard.dtype))
            with torch.no_grad():
                model.build(replace(shard, given=recorder))
            save_file(recorder.tensors, out / f"rank{rank}.safetensors", recorder.metadata())
    except PythonMpError as error:
        raise BuildError(f"{job.name}: {error}") from error


def weights(job: Job, dtype: torch.dtype) -> Weights:
    """The job's checkpoint. Of a Hugging Face model whose tensors bear the module's names each is
    cut from the file; any other is loaded by transformers, which knows the names of old."""
    import torch

    from python_mp.sharding.weights import Checkpoint, Tensors

    folder, cpu = fetch.read(job).folder, torch.device("cpu")
    if job.recipe.family == "encoder" and not _bears_its_names(folder):
        return Tensors(checkpoint_folder.Checkpoint(folder).model().state_dict(), dtype)
    return Checkpoint(folder, dtype, cpu)


def _bears_its_names(folder: Path) -> bool:
    from python_mp.sharding.families import skeleton, transformers

    model = skeleton.make(transformers.read(folder / "config.json"))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return wanted.items() <= checkpoint_folder.tensors(folder).items()


def add_code(job: Job, out: Path) -> None:
    """What every artifact needs beside its weights or graphs: the user's module.py, or the family's
    config.json."""
    code = job.code or fetch.read(job).folder / "config.json"
    shutil.copyfile(code, out / code.name)


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("shards"))
