"""A model's plans: what stage `compile` does for engine tensorrt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from rich.progress import Progress

from build_scripts import fetch, onnx_file, storage
from build_scripts.errors import BuildError
from build_scripts.recipe import TensorRt
from build_scripts.tensorrt import plan
from build_scripts.tensorrt.profiles import profiles
from python_mp.rank.cuda import gpu
from python_mp.rank.engines.tensorrt_api import library

if TYPE_CHECKING:
    from build_scripts.job import Job

TIMING_CACHE = "tensorrt.timing"
DRIVER = Path("/proc/driver/nvidia/version")


def run(job: Job, out: Path, progress: Progress) -> None:
    """The stage's work: every rank's plan into `out`, and facts for the manifest.

    One after another: each build times its kernels on the GPU.
    """
    from python_mp.rank.engines.tensorrt import plan_path

    _check_limit(job)
    source = job.output("export" if job.recipe.dtype == "float32" else "quantise")
    for rank in range(job.world_size):
        graph = source / f"rank{rank}.onnx"
        shapes = profiles(onnx_file.graph(graph), job.recipe.shapes.sizes, _longest(job))
        path, cache = plan_path(out, rank, job.world_size), job.workspace / TIMING_CACHE
        plan.build(graph, path, shapes, job.recipe.tensorrt, cache, progress)
        if job.recipe.tensorrt.strip_plan:
            onnx_file.copy(graph, out / graph.name)
    storage.write_json(out / "facts.json", _facts(job.recipe.tensorrt))


def _check_limit(job: Job) -> None:
    """A batch beyond the plan's shapes would end its group, so the front must not make one."""
    limit, (smallest, _, largest) = job.config.parameters.max_batch_tokens, job.recipe.shapes.sizes
    if smallest > 1:
        raise BuildError(
            f"{job.model}: a request may be of one row; the smallest of `{job.recipe.shapes.axis}`"
            f" in recipe.toml must be 1, not {smallest}."
        )
    if limit > largest:
        raise BuildError(
            f"{job.model}: config.pbtxt allows batches of {limit} rows (max_batch_tokens), and"
            f" recipe.toml has plans built for up to {largest} ({job.recipe.shapes.axis}): make the"
            " first no larger than the second."
        )


def _longest(job: Job) -> int | None:
    """Tokens of the longest sequence, where the model's family sets a bound."""
    longest = fetch.longest_text(job)
    return None if longest is None else min(longest, job.recipe.shapes.sizes[2])


def _facts(options: TensorRt) -> dict[str, Any]:
    """What a plan is bound to."""
    versions = {"tensorrt": library().__version__, "cuda": torch.version.cuda}
    if found := re.search(r"Module\s+([\d.]+)", DRIVER.read_text() if DRIVER.exists() else ""):
        versions["driver"] = found[1]
    return {
        "versions": versions,
        "hardware": {"gpu": gpu()},
        "options": msgspec.structs.asdict(options),
    }
