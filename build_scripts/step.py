"""Stage `step`: what runs before or after a model in Triton's own Python backend, and the settings
that a checkpoint's folder has for it. Its code is python_mp.steps."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from rich.progress import Progress

from build_scripts import (
    checkpoint_images,
    checkpoint_tokenizer,
    classes,
    fetch,
    ranges,
    tokenizer_files,
)
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.job import Job
from python_mp.steps import settings_file

NEEDS = ("fetch", "ranges")
TOOLS = ("pillow", "sentencepiece", "tokenizers", "transformers")
MODEL = "from python_mp.steps.{} import TritonPythonModel as TritonPythonModel\n"


def inputs(job: Job) -> dict[str, object]:
    return {"family": job.recipe.family, "task": job.task}


def run(job: Job, out: Path, _progress: Progress) -> None:
    """Writes `model.py`, and what it reads."""
    if ranges.applies(job):
        shutil.copyfile(job.output("ranges") / ranges.FILE, out / ranges.FILE)
    (out / "model.py").write_text(MODEL.format(job.recipe.family))
    for name, text in SETTINGS[job.recipe.family](fetch.checkpoint(job)).items():
        (out / name).write_text(text)


def _tokenizer(checkpoint: Checkpoint) -> dict[str, str]:
    said = checkpoint.settings
    prompts = {"prompts": said.prompts, "default_prompt": said.default_prompt}
    ours = {tokenizer_files.FILE: checkpoint_tokenizer.written(checkpoint)}
    if checkpoint.task == "tokens":
        return ours | _as_json({"unknown": checkpoint_tokenizer.unknown(checkpoint)})
    return ours | (_as_json(prompts) if checkpoint.task == "embed" else {})


def _prompt(checkpoint: Checkpoint) -> dict[str, str]:
    ours = {tokenizer_files.FILE: checkpoint_tokenizer.written(checkpoint)}
    return ours | _as_json(checkpoint_tokenizer.chat(checkpoint))


def _text(checkpoint: Checkpoint) -> dict[str, str]:
    return {tokenizer_files.FILE: checkpoint_tokenizer.written(checkpoint)}


def _vectors(checkpoint: Checkpoint) -> dict[str, str]:
    return _as_json({"truncate_dim": checkpoint.settings.truncate_dim})


def _images(checkpoint: Checkpoint) -> dict[str, str]:
    return _as_json(asdict(checkpoint_images.load(checkpoint)))


def _scores(checkpoint: Checkpoint) -> dict[str, str]:
    assert checkpoint.cross_encoder
    return _as_json({"activation": checkpoint.cross_encoder.activation})


def _labels(checkpoint: Checkpoint) -> dict[str, str]:
    found = classes.of(checkpoint)
    return _as_json({"labels": found.labels, "activation": found.activation})


def _spans(checkpoint: Checkpoint) -> dict[str, str]:
    return _as_json({"labels": classes.of(checkpoint).labels})


def _as_json(said: Mapping[str, object]) -> dict[str, str]:
    return {settings_file.NAME: json.dumps(said, indent=2) + "\n"}


SETTINGS: Mapping[str, Callable[[Checkpoint], dict[str, str]]] = {
    "tokenizer": _tokenizer,
    "prompt": _prompt,
    "text": _text,
    "vectors": _vectors,
    "images": _images,
    "scores": _scores,
    "labels": _labels,
    "spans": _spans,
}
"""By the recipe's family: texts of files by their names."""


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("step"))
