"""20 layouts of `embed_encoder` behind Triton: what the planner's model predicts, and what is then
measured.

Each is measured in turns with one rank of one thread, torch in float32, and stands as its share of
that, for the machine's moods hit both. The model's constants are fitted to `FITTED` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from build_scripts import stages
from build_scripts.places import REPOSITORY, WORKSPACE
from build_scripts.plan import candidates, workload
from build_scripts.plan.__main__ import with_ranks
from build_scripts.plan.alpha_beta import Work, forecast
from build_scripts.plan.candidates import Choice
from build_scripts.plan.fitting import Seen, fit
from build_scripts.plan.stand import Stand

MODEL = "embed"
LAYERS, ROW_NBYTES = 6, 4 * 384
ROUNDS, IN_FLIGHT, ONE = 3, 32, 1
BASE = Choice("torch", "float32", threads=1)
ENGINES = (
    *({"engine": "torch", "dtype": dtype} for dtype in ("float32", "bfloat16")),
    *({"engine": "onnxruntime", "dtype": dtype} for dtype in ("float32", "int8_dynamic")),
)
LAYOUTS: tuple[dict[str, Any], ...] = (
    *({"threads": 1}, {"threads": 2}, {"threads": 1, "replicas": 2}),
    *({"threads": 1, "tensor_parallel_size": 2}, {"threads": 1, "pipeline_parallel_size": 2}),
)
Case = tuple[Choice, int]


def run() -> Iterator[dict[str, Any]]:
    """One record a layout; `fitted` are those that the constants are from."""
    alone = [candidates.changed(BASE, engine) for engine in ENGINES]
    every = [replace(choice, **layout) for choice, layout in product(alone, LAYOUTS)]
    fitted = [(c, IN_FLIGHT) for c in every if c in alone or _kind(c) == _kind(BASE)]
    cases = [*((c, IN_FLIGHT) for c in every), *((c, ONE) for c in alone)]
    measured, tokens, bound = _measure(cases)
    known = [*fitted, *((c, ONE) for c in alone)]
    seen = [_seen(case, measured[case], tokens, bound) for case in known]
    machines = fit(seen, candidates.devices(_job()))
    for choice in every:
        case = choice, IN_FLIGHT
        each = _seen(case, measured[case], tokens, bound)
        rate = forecast(machines[each.kind], each.work, each.layout, each.threads).rate
        yield {
            "layout": str(choice),
            "fitted": case in fitted,
            "predicted requests/s": rate,
            "measured requests/s": each.rate,
            "predicted / measured": rate / each.rate,
        }


def _measure(cases: list[Case]) -> tuple[dict[Case, float], float, int]:
    """Rates, as shares of the base's times its median; mean tokens of a request; tokens a batch."""
    job, shares = _job(), {}
    bases: dict[int, list[float]] = {ONE: [], IN_FLIGHT: []}
    with Progress(console=Console(stderr=True)) as progress:
        stages.ensure(job, stages.plan(job), "fetch", progress)
        requests = workload.requests(job, None)
        with Stand(job, BASE, requests, IN_FLIGHT, progress) as stand:
            for choice, in_flight in progress.track(cases, description="layouts"):
                stand.keep(BASE, choice)
                rates = [_pair(stand, choice, in_flight) for _ in range(ROUNDS)]
                bases[in_flight] += [base for base, _ in rates]
                shares[choice, in_flight] = median(other / base for base, other in rates)
    found = {case: share * median(bases[case[1]]) for case, share in shares.items()}
    lengths = [each["INPUT_IDS"].shape[1] for each in requests]
    return found, float(np.mean(lengths)), BASE.max_batch_tokens


def _pair(stand: Stand, choice: Choice, in_flight: int) -> tuple[float, float]:
    base = stand.load(BASE, in_flight).requests_per_second
    return base, stand.load(choice, in_flight).requests_per_second


def _seen(case: Case, rate: float, tokens: float, bound: int) -> Seen:
    choice, in_flight = case
    work = Work(LAYERS, ROW_NBYTES, tokens, in_flight, bound)
    return Seen(_kind(choice), choice.layout, choice.threads, work, rate)


def _kind(choice: Choice) -> str:
    return f"{choice.engine} {choice.dtype}"


def _job() -> Any:
    return with_ranks(MODEL, Path(REPOSITORY), Path(WORKSPACE))
