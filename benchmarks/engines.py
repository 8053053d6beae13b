"""Every engine and dtype of the encoder, without Triton, in turns: one text, and full load.

All have the layout of config.pbtxt. They are built first, where they are not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.parallel import latency_ms, texts_per_second
from benchmarks.texts import short_texts, token_ids
from build_scripts import artifact, job, stages
from build_scripts.job import Job
from python_mp.front.local import Local, served
from python_mp.model.config import ModelConfig

MODEL = "embed_encoder"
ENGINES = (
    *(("torch", "float32"), ("torch", "bfloat16"), ("aot_inductor", "float32")),
    *(("onnxruntime", dtype) for dtype in ("float32", "int8", "int8_dynamic")),
)
ROUNDS = 5


def run() -> Iterator[dict[str, Any]]:
    """One record an engine and dtype; the ratios are to the first one, torch in float32."""
    jobs = _jobs()
    with ExitStack() as stack:
        folder, *runtimes = (
            Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in ("models", *jobs)
        )
        replicas = [
            stack.enter_context(served(_config(each, folder), runtime))
            for each, runtime in zip(jobs, runtimes, strict=True)
        ]
        _measure(replicas)
        rounds = [_measure(replicas) for _ in range(ROUNDS)]
    base: dict[str, float] = {}
    for each, measured in zip(jobs, zip(*rounds, strict=True), strict=True):
        latency, rate = (median(values) for values in zip(*measured, strict=True))
        base = base or {"ms": latency, "rate": rate}
        yield {
            "engine": each.recipe.engine,
            "dtype": each.recipe.dtype,
            "layout": str(each.layout),
            "p50 ms": latency,
            "texts/s": rate,
            "faster at one": base["ms"] / latency,
            "faster at full load": rate / base["rate"],
        }


def _measure(replicas: list[Local]) -> list[tuple[float, float]]:
    usual = sorted(token_ids(short_texts()), key=len)[len(short_texts()) // 2]
    return [(latency_ms(each, usual), texts_per_second(each)) for each in replicas]


def _jobs() -> list[Job]:
    overrides = ({"engine": engine, "dtype": dtype} for engine, dtype in ENGINES)
    jobs = [job.load(MODEL, overrides=each) for each in overrides]
    with Progress(console=Console(stderr=True)) as progress:
        for each in jobs:
            artifact.build(each, progress, publishing=False)
    return jobs


def _config(job: Job, folder: Path) -> ModelConfig:
    steps = stages.plan(job)
    made = steps[stages.artifact_stage(steps)].folder
    return job.served_from(made, folder / f"{job.recipe.engine}-{job.recipe.dtype}")
