"""A decoder's checkpoint through `new`, the real build and its own gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from build_scripts import artifact
from build_scripts import job as jobs
from build_scripts.errors import BuildError
from build_scripts.new.__main__ import main
from build_scripts.outcome import Result
from tests.support.decoding import causal
from tests.support.task_folders import byte_pairs

pytestmark = pytest.mark.timeout(300)


def made(folder: Path, name: str, *layout: str) -> jobs.Job:
    """Of the model with ranks, as a user has it after `new`."""
    tokenizer, family = byte_pairs(), causal(name)
    tokenizer.save_pretrained(folder / "checkpoint")
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    replace(family, values={**family.values, **ids, "vocab_size": 400}).make().save_pretrained(
        folder / "checkpoint"
    )
    arguments = ["m", str(folder / "checkpoint"), f"--repository={folder / 'models'}", *layout]
    assert main(arguments) == 0
    return jobs.load("m_decoder", folder / "models", workspace=folder / "build")


def built(job: jobs.Job) -> Result:
    with Progress(console=Console(quiet=True)) as progress:
        return artifact.build(job, progress)


def test_a_decoder_is_built(tmp_path: Path) -> None:
    """Softcaps, windows and tied weights, on two ranks."""
    job = made(tmp_path, "gemma2", "--tensor-parallel-size=2")
    result = built(job)
    assert (result.status, result.error) == ("published", "")
    assert result.accuracy["top1_agreement_min"] == 1
    said = json.loads((job.folder / "1/task.json").read_text())
    assert (said["context_length"], said["vocabulary"]) == (128, 400)
    assert said["eos_token_ids"] == [2]
    assert (job.folder / "1/tokenizer.json").is_file()


def test_other_engines_are_refused(tmp_path: Path) -> None:
    job = made(tmp_path, "gpt2")
    recipe, family = tmp_path / "models/m/recipe.toml", 'family = "transformers"\n'
    recipe.write_text(recipe.read_text().replace(family, f'{family}engine = "onnxruntime"\n'))
    with pytest.raises(BuildError, match="engine onnxruntime does not generate text"):
        built(jobs.load("m_decoder", job.folder.parent, workspace=tmp_path / "build"))
