"""Stage `step`: what runs before or after a model in Triton's own Python backend, and the settings
that a checkpoint's folder has for it. Its code is python_mp.steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.progress import Progress

from build_scripts import checkpoint_tokenizer, fetch
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.job import Job

NEEDS = ("fetch",)
TOOLS = ("tokenizers", "transformers")
MODEL = "from python_mp.steps.{} import TritonPythonModel as TritonPythonModel\n"


def inputs(job: Job) -> dict[str, object]:
    return {"family": job.recipe.family}


def run(job: Job, out: Path, _progress: Progress) -> None:
    """Writes `model.py`, and what it reads."""
    (out / "model.py").write_text(MODEL.format(job.recipe.family))
    for name, text in SETTINGS[job.recipe.family](Checkpoint(fetch.read(job).folder)).items():
        (out / name).write_text(text)


def _tokenizer(checkpoint: Checkpoint) -> dict[str, str]:
    return {checkpoint_tokenizer.FILE: checkpoint_tokenizer.written(checkpoint)}


def _vectors(_: Checkpoint) -> dict[str, str]:
    return {}


SETTINGS: Mapping[str, Callable[[Checkpoint], dict[str, str]]] = {
    "tokenizer": _tokenizer,
    "vectors": _vectors,
}
"""By the recipe's family: texts of files by their names."""


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("step"))
