"""Stage `ranges`: for vectors in INT8, the lowest and the highest value of each dimension, over the
texts that the gate judges the encoder by."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from build_scripts import fetch, recipe_file, reference, room, samples, storage, triton_config
from build_scripts import job as jobs
from build_scripts.errors import BuildError
from build_scripts.job import Job

if TYPE_CHECKING:
    from python_mp.model.request import Array

NEEDS = ("fetch",)
TOOLS = ("numpy", "pillow", "safetensors", "sentencepiece", "tokenizers", "torch", "transformers")
FILE = "ranges.json"


def applies(job: Job) -> bool:
    if job.recipe.family != "vectors":
        return False
    data_type, _ = triton_config.outputs(job.folder).get("EMBEDDING", ["", []])
    return bool(data_type == "TYPE_INT8")


def inputs(job: Job) -> dict[str, object]:
    return {"samples": _encoder(job).samples}


def run(job: Job, out: Path, progress: Progress) -> None:
    """Writes `ranges.json`."""
    import numpy as np
    import torch

    encoder = _encoder(job)
    requests = samples.judged(encoder).requests
    room.require(fetch.read(job).folder, f"{job.name}: ranges of int8 vectors")
    with torch.inference_mode():
        made = reference.computed(encoder, requests)
        shown = progress.track(made, len(requests), description=f"{job.name}: ranges")
        vectors = np.concatenate([each["SENTENCE_EMBEDDING"] for each in shown])
    write(out, vectors)


def write(out: Path, vectors: Array) -> None:
    """Those of float32 [vectors, dimensions]."""
    lowest, highest = vectors.min(0).tolist(), vectors.max(0).tolist()
    storage.write_json(out / FILE, {"lowest": lowest, "highest": highest})


def _encoder(job: Job) -> Job:
    """That of the same recipe, with the checkpoint that was fetched for this job."""
    repository = job.folder.parent
    for name in recipe_file.models(job.home / recipe_file.NAME):
        found = jobs.load(name, repository, workspace=job.workspace)
        if found.recipe.family == "transformers":
            return replace(found, outputs=job.outputs)
    raise BuildError(f"{job.model} has INT8 vectors, but its recipe makes no encoder to give them")


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("ranges"))
