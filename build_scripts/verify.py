"""Stage `verify`: the engine, with all its ranks, against the reference.

It runs as it will be served, by a replica of python_mp, and is asked the recipe's samples. What it
answers is compared by Polygraphy; beyond the recipe's bounds nothing is published.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import Progress

from build_scripts import room, storage
from build_scripts.errors import BuildError
from build_scripts.job import Job, artifact_stage
from python_mp.machine.temporary import temporary_folder

if TYPE_CHECKING:
    from python_mp.model.config import ModelConfig
    from python_mp.model.request import Array

NEEDS = ("fetch", "reference", "shards", "export", "quantise", "compile")
TOOLS = (
    "numpy",
    "onnxruntime",
    "pillow",
    "polygraphy",
    "safetensors",
    "sentencepiece",
    "tensorrt",
    "tokenizers",
    "torch",
    "transformers",
)
WORST = 5
LATENCY_ROUNDS = 20


def inputs(job: Job) -> dict[str, object]:
    return {
        "accuracy": job.recipe.accuracy.as_json(),
        "engine": job.recipe.engine,
        "dtype": job.recipe.dtype,
        "served": json.loads(job.config.source[0]),
        "samples": job.samples,
    }


def run(job: Job, out: Path, progress: Progress) -> None:
    """Writes `verify.json`: accuracy, latency, the worst samples, and whether it passed."""
    from build_scripts import reference, samples

    wanted = samples.judged(job)
    answers, latency = _served(job, wanted.requests, progress)
    if lacked := reference.lacked(job):
        storage.write_json(out / "facts.json", {room.LACKS: lacked})
        judged: dict[str, Any] = {"accuracy": room.unverified(lacked), "worst": [], "misses": []}
    else:
        judged = _judged(job, answers, reference.read(job), wanted.labels)
    report = {"latency": latency, "passed": not judged["misses"], **judged}
    storage.write_json(out / "verify.json", report)


def _judged(
    job: Job,
    answers: Sequence[dict[str, Array]],
    expected: Sequence[dict[str, Array]],
    labels: Sequence[int] | None,
) -> dict[str, Any]:
    scores = [compare(a, e) for a, e in zip(answers, expected, strict=True)]
    accuracy = summary(scores) | _agreement(answers, expected, labels, job)
    worst = sorted(range(len(scores)), key=lambda n: scores[n].cosine)[:WORST]
    return {
        "accuracy": accuracy,
        "worst": [{"sample": n, **vars(scores[n])} for n in worst],
        "misses": misses(accuracy, job.recipe.accuracy.bounds(job.recipe.dtype).given()),
    }


@dataclass(frozen=True)
class Score:
    """How far one sample's answer is from the reference: the worst of its outputs."""

    cosine: float
    max_error: float
    mean_error: float


def compare(answer: dict[str, Array], expected: dict[str, Array]) -> Score:
    """Cosines are of the vector that comes of averaging an output over all axes but the last, as
    pooling does with hidden states; errors are of every element."""
    from polygraphy.comparator import (
        CosineSimilarityCompareFunc,
        IterationResult,
        SimpleCompareFunc,
    )
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        ours, theirs = IterationResult(answer), IterationResult(expected)
        errors = SimpleCompareFunc(fail_fast=False)(ours, theirs)
        pooled = IterationResult(_pooled(answer)), IterationResult(_pooled(expected))
        cosines = CosineSimilarityCompareFunc()(*pooled)
    return Score(
        cosine=min(float(each.cosine_similarity) for each in cosines.values()),
        max_error=max(float(each.max_absdiff) for each in errors.values()),
        mean_error=max(float(each.mean_absdiff) for each in errors.values()),
    )


def _pooled(outputs: dict[str, Array]) -> dict[str, Array]:
    return {n: a.astype("float64").reshape(-1, a.shape[-1]).mean(0) for n, a in outputs.items()}


def summary(scores: Sequence[Score]) -> dict[str, float]:
    """Over all samples, by the names that recipes use."""
    return {
        "samples": len(scores),
        "cosine_min": min(score.cosine for score in scores),
        "cosine_mean": mean(score.cosine for score in scores),
        "max_error": max(score.max_error for score in scores),
        "mean_error": mean(score.mean_error for score in scores),
    }


def misses(accuracy: dict[str, float], bounds: dict[str, float]) -> list[str]:
    """The bounds that do not hold, each as a sentence.

    Raises:
        BuildError: a bound is for what this model has no figure of.
    """
    failed = []
    for name, bound in bounds.items():
        if name not in accuracy:
            raise BuildError(
                f"accuracy.{name} has a bound, but there is no figure of it: no labels"
            )
        is_error = name.endswith("error")
        # Written so that a NaN fails.
        holds = accuracy[name] <= bound if is_error else accuracy[name] >= bound
        if not holds:
            failed.append(
                f"{name} is {accuracy[name]:.7g}, not {'<=' if is_error else '>='} {bound}"
            )
    return failed


def _agreement(
    answers: Sequence[dict[str, Array]],
    expected: Sequence[dict[str, Array]],
    labels: Sequence[int] | None,
    job: Job,
) -> dict[str, float]:
    """For classifiers: how often the first place is the same, over all texts, tokens or images, and
    where samples have labels, how often it is the right one."""
    if labels is None and job.task not in ("classify", "tokens"):
        return {}
    ours, theirs = (np.concatenate([_first(each) for each in side]) for side in (answers, expected))
    agreement = {"top1_agreement_min": float((ours == theirs).mean())}
    right = {} if labels is None else {"accuracy_min": float((ours == np.array(labels)).mean())}
    return agreement | right


def _first(outputs: dict[str, Array]) -> Array:
    (scores,) = outputs.values()
    places: Array = scores.argmax(-1).ravel()
    return places


def _served(
    job: Job, requests: Sequence[dict[str, Array]], progress: Progress
) -> tuple[list[dict[str, Array]], dict[str, float]]:
    """Every request's answer, and how long they took."""
    from python_mp.front.local import served
    from python_mp.model.errors import PythonMpError

    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
        config = job.served_from(job.output(artifact_stage(job.outputs)), Path(folder))
        config = with_room(config, requests)
        try:
            with served(config, Path(folder)) as replica:
                futures = [replica.ask(**request) for request in requests]
                task = f"{job.name}: verify"
                answers = [f.result() for f in progress.track(futures, description=task)]
                return answers, _latency(replica, requests)
        except PythonMpError as error:
            raise BuildError(f"{job.name}: {error}") from error


def with_room(config: ModelConfig, requests: Sequence[dict[str, Array]]) -> ModelConfig:
    """Nobody else waits, and every sample is to be answered, however long the queue is."""
    said, nbytes = config.parameters, sum(a.nbytes for each in requests for a in each.values())
    parameters = replace(
        said,
        max_queue_requests=max(said.max_queue_requests, len(requests)),
        max_queue_bytes=max(said.max_queue_bytes, 2 * nbytes),
    )
    return replace(config, parameters=parameters, queue_seconds=math.inf)


def _latency(replica: Any, requests: Sequence[dict[str, Array]]) -> dict[str, float]:
    """One request at a time, the one of middle size; then all at once."""
    usual = sorted(requests, key=lambda each: sum(a.nbytes for a in each.values()))
    request = usual[len(usual) // 2]
    times = [_seconds(lambda: replica.ask(**request).result()) for _ in range(1 + LATENCY_ROUNDS)][
        1:
    ]
    everything = _seconds(lambda: [f.result() for f in replica.ask_all(requests)])
    return {"p50_ms": median(times) * 1e3, "samples_per_second": len(requests) / everything}


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("verify"))
