"""Two sides under the same load, in turns within one run."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from clients.closed_loop import Load

ROUNDS, SECONDS = 3, 4.0
Side = Callable[[], Load]


def at(concurrency: int, *sides: Callable[[int], Load]) -> list[Side]:
    return [lambda side=side: side(concurrency) for side in sides]  # type: ignore[misc]


def throughput(comparison: str, ours: Side, theirs: Side) -> dict[str, Any]:
    return _compare(comparison, "requests/s", "requests_per_second", ours, theirs)


def latency(comparison: str, ours: Side, theirs: Side) -> dict[str, Any]:
    return _compare(comparison, "p50 ms", "p50_ms", ours, theirs)


def _compare(comparison: str, unit: str, key: str, ours: Side, theirs: Side) -> dict[str, Any]:
    rounds = [(ours(), theirs()) for _ in range(ROUNDS)]
    first, second = (
        median(getattr(load, key) for load in side) for side in zip(*rounds, strict=True)
    )
    return {
        "comparison": comparison,
        "unit": unit,
        "generator": rounds[0][0].generator,
        "ours": first,
        "theirs": second,
        "ratio": first / second,
    }
