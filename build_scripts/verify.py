"""Stage `verify`: the engine, with all its ranks, against the reference.

It runs as it will be served, by a replica of python_mp, and is asked the recipe's samples. What it
answers is compared by Polygraphy; beyond the recipe's bounds nothing is published.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import Progress

from build_scripts import continuations, room, storage, trial
from build_scripts.errors import BuildError
from build_scripts.job import Job

if TYPE_CHECKING:
    from build_scripts.samples import Samples
    from python_mp.front.local import Local
    from python_mp.model.request import Array

    Outputs = dict[str, Array]

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
AT_ONCE = 16
"""Texts that are continued."""
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

    wanted, lacked = samples.judged(job), reference.lacked(job)
    expected = [] if lacked else reference.read(job)
    ask = _continued if job.task == "generate" else _answered
    with trial.served(job, wanted.requests) as replica:
        judged, latency = ask(job, replica, wanted, expected, progress)
    if lacked:
        storage.write_json(out / "facts.json", {room.LACKS: lacked})
        judged = {"accuracy": room.unverified(lacked), "worst": [], "misses": []}
    report = {"latency": latency, "passed": not judged["misses"], **judged}
    storage.write_json(out / "verify.json", report)


Judged = tuple[dict[str, Any], dict[str, float]]
"""Accuracy with its worst samples and what it misses; latency."""


def _answered(
    job: Job, replica: Local, wanted: Samples, expected: list[Outputs], progress: Progress
) -> Judged:
    futures = [replica.ask(**request) for request in wanted.requests]
    task = f"{job.name}: verify"
    answers = [f.result() for f in progress.track(futures, description=task)]
    judged = _judged(job, answers, expected, wanted.labels) if expected else {}
    return judged, _latency(replica, wanted.requests)


def _continued(
    job: Job, replica: Local, wanted: Samples, expected: list[Outputs], progress: Progress
) -> Judged:
    asked = wanted.requests[: len(expected)]
    with ThreadPoolExecutor(AT_ONCE) as pool:  # So that they share steps, as they will.
        compared = pool.map(partial(continuations.compare, replica), asked, expected)
        found = list(progress.track(compared, len(asked), description=f"{job.name}: verify"))
    latency = continuations.latency(replica, wanted.requests)
    if not found:
        return {}, latency
    accuracy = continuations.summary(found)
    worst = sorted(range(len(found)), key=lambda n: found[n].agreement)[:WORST]
    judged = {
        "accuracy": accuracy,
        "worst": [{"sample": n, **vars(found[n])} for n in worst],
        "misses": misses(accuracy, job.recipe.accuracy.bounds(job.recipe.dtype).given()),
    }
    return judged, latency


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

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(invalid="ignore"):
        ours, theirs = IterationResult(answer), IterationResult(expected)
        errors = SimpleCompareFunc(fail_fast=False)(ours, theirs)
        pooled = IterationResult(_pooled(answer)), IterationResult(_pooled(expected))
        cosines = CosineSimilarityCompareFunc()(*pooled)
    return Score(
        cosine=_least(float(each.cosine_similarity) for each in cosines.values()),
        max_error=_most(float(each.max_absdiff) for each in errors.values()),
        mean_error=_most(float(each.mean_absdiff) for each in errors.values()),
    )


def _pooled(outputs: dict[str, Array]) -> dict[str, Array]:
    return {n: a.astype("float64").reshape(-1, a.shape[-1]).mean(0) for n, a in outputs.items()}


def _least(values: Iterable[float]) -> float:
    """NaN where one is: Python's own passes it over."""
    return float(np.min([*values]))


def _most(values: Iterable[float]) -> float:
    return float(np.max([*values]))


def summary(scores: Sequence[Score]) -> dict[str, float]:
    """Over all samples, by the names that recipes use."""
    return {
        "samples": len(scores),
        "cosine_min": _least(score.cosine for score in scores),
        "cosine_mean": mean(score.cosine for score in scores),
        "max_error": _most(score.max_error for score in scores),
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
