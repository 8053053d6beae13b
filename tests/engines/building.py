"""Builds for tests: any model by any recipe; nothing is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from build_scripts import job as jobs
from build_scripts import stages
from build_scripts.job import Job


def plan(repository: Path, model: str, workspace: Path, **recipe: Any) -> Job:
    """The job with these keys of the recipe replaced; `tp` and `pp` are its layout."""
    sizes = {
        "tensor_parallel_size": recipe.pop("tp", 1),
        "pipeline_parallel_size": recipe.pop("pp", 1),
    }
    return jobs.load(model, repository, recipe, workspace, sizes)


def build(job: Job, *, verify: bool = False) -> Path:
    """Runs the job's stages; the folder of the artifact, or of the stage verify."""
    steps = stages.plan(job)
    wanted = [name for name in steps if verify or name != "verify"][-1]
    (job.workspace / job.model).mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(quiet=True)) as progress:
        stages.ensure(job, steps, wanted, progress)
    return job.output(wanted)
