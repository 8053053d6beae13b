"""Stage `tokenizer`: a checkpoint's tokenizer.json as it is served, cut and not padded."""

import sys
from pathlib import Path

from rich.progress import Progress

from build_scripts import fetch
from build_scripts.checkpoint import Checkpoint
from build_scripts.job import Job

NEEDS = ("fetch",)
SOURCES = ("build_scripts/checkpoint.py",)
TOOLS = ("tokenizers",)


def applies(job: Job) -> bool:
    return job.recipe.family == "tokenizer"


def inputs(_job: Job) -> dict[str, object]:
    return {}


def run(job: Job, out: Path, _progress: Progress) -> None:
    """Writes `tokenizer.json`, which cuts texts at the model's limit and pads nothing."""
    Checkpoint(fetch.read(job).folder).tokenizer().save(str(out / "tokenizer.json"))


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("tokenizer"))
