"""What was measured beside what is wanted, and two or more sides in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import numpy as np

ROUNDS = 3
Record = dict[str, Any]
T = TypeVar("T")


def in_turns(sides: Mapping[str, Callable[[], T]], rounds: int = ROUNDS) -> dict[str, list[T]]:
    """What each side gives, round by round, so that a machine that slows down slows all."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            found[name].append(measure())
    return found


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """Round by round."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def at_least(goal: float, what: str, values: Sequence[float], seen: str) -> Record:
    return _record(what, values, f">= {goal:g}", median(values) >= goal, seen)


def at_most(goal: float, what: str, values: Sequence[float], seen: str) -> Record:
    return _record(what, values, f"<= {goal:g}", median(values) <= goal, seen)


def stated(what: str, values: Sequence[float], seen: str) -> Record:
    """Without a goal."""
    return _record(what, values, "stated", None, seen)


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def _record(what: str, values: Sequence[float], goal: str, met: bool | None, seen: str) -> Record:
    word = {True: "yes", False: "NO", None: ""}[met]
    return {"what": what, "value": spread(values), "goal": goal, "met": word, "seen": seen}


def not_run(what: str, why: str) -> Record:
    return {"what": what, "value": "", "goal": "", "met": "not run", "seen": why}
