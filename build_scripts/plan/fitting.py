"""This machine's constants, from layouts that were measured on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from build_scripts.new.pbtxt_parts import Layout
from build_scripts.plan.alpha_beta import Link, Machine, Work, forecast

FIRST = {"batch": 2e-3, "token": 5e-5, "request": 5e-4}
SHARES = {"undivided": 0.1, "single": 0.1}
START = 2e-5
"""Of an all-reduce in shared memory."""


@dataclass(frozen=True)
class Seen:
    """
    Attributes:
        kind: engine and dtype, which have constants of their own.
        threads: of each rank.
        rate: requests a second.
    """

    kind: str
    layout: Layout
    threads: int
    work: Work
    rate: float


def fit(seen: Sequence[Seen], cores: int) -> Mapping[str, Machine]:
    """For each kind the machine that forecasts what was seen of it with the least error in its
    logarithm; all but `batch` and `token` are common."""
    from scipy.optimize import least_squares

    kinds = list(dict.fromkeys(each.kind for each in seen))
    first = [math.log(FIRST["request"]), *map(math.log, SHARES.values()), math.log(START)]
    for _ in kinds:
        first += [math.log(FIRST["batch"]), math.log(FIRST["token"])]

    def errors(logs: Sequence[float]) -> list[float]:
        found = _machines(kinds, logs, cores)
        return [
            math.log(forecast(found[e.kind], e.work, e.layout, e.threads).rate / e.rate)
            for e in seen
        ] + [1e-3 * (log - start) for log, start in zip(logs, first, strict=True)]

    solved = least_squares(errors, first)
    return _machines(kinds, list(solved.x), cores)


def _machines(kinds: Sequence[str], logs: Sequence[float], cores: int) -> dict[str, Machine]:
    request, undivided, single, start, *own = (math.exp(min(log, 20.0)) for log in logs)
    link = Link(start, 0.0, 4e9)
    common = Machine(
        devices=cores,
        hosts=1,
        batch=0.0,
        token=0.0,
        undivided=min(1.0, undivided),
        single=min(1.0, single),
        near=[link],
        far=[link],
        request=request,
        cores=cores,
        is_shared=True,
    )
    return {
        kind: replace(common, batch=own[2 * n], token=own[2 * n + 1])
        for n, kind in enumerate(kinds)
    }
