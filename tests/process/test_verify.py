"""The gate runs with whatever config.pbtxt allows: samples are more than any queue may hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rich.progress import Progress

from build_scripts import job as jobs
from build_scripts import stages
from build_scripts.job import REPOSITORY

LIMITS = {"max_queue_requests": 1, "max_queue_bytes": 1 << 10, "max_batch_tokens": 1}
PATIENCE = "dynamic_batching { default_queue_policy { default_timeout_microseconds: 1 } }"


def test_every_sample_is_answered_under_the_tightest_limits(tmp_path: Path) -> None:
    model = tmp_path / "repository" / "m"
    shutil.copytree(REPOSITORY / "ranker", model, ignore=shutil.ignore_patterns("[0-9]*"))
    config = model / "config.pbtxt"
    kept = [line for line in config.read_text().splitlines() if "dynamic_batching" not in line]
    limits = [
        f'parameters {{ key: "{name}" value {{ string_value: "{most}" }} }}'
        for name, most in LIMITS.items()
    ]
    config.write_text("\n".join([*kept, PATIENCE, *limits]))
    sizes = {"tensor_parallel_size": 1}
    job = jobs.load("m", model.parent, workspace=tmp_path / "workspace", sizes=sizes)
    (job.workspace / "m").mkdir(parents=True)
    stages.ensure(job, stages.plan(job), "verify", Progress(disable=True))
    found = json.loads((job.output("verify") / "verify.json").read_text())
    assert (found["accuracy"]["samples"], found["passed"]) == (200, True)
