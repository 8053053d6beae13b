"""Stage `tokenizer`: a checkpoint's tokenizer as it is served, one file, cut and not padded."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.progress import Progress

from build_scripts import fetch
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.checkpoint_tokenizer import FILE, written
from build_scripts.job import Job

NEEDS = ("fetch",)
TOOLS = ("tokenizers", "transformers")


def inputs(_job: Job) -> dict[str, object]:
    return {}


def run(job: Job, out: Path, _progress: Progress) -> None:
    """Writes `tokenizer.json`."""
    (out / FILE).write_text(written(Checkpoint(fetch.read(job).folder)))


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("tokenizer"))
