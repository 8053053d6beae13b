"""How much of the campaigns a run does. `make test-all` sets CAMPAIGNS=share: of what is many times
the same with other values, some by chance. Unset, or CAMPAIGNS=whole, is everything.

The choice is by a seed that the run prints first; CAMPAIGNS_SEED=N in the environment repeats it.
"""

import os
import random
from collections.abc import Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")
WORD = os.environ.get("CAMPAIGNS") or "whole"
SEED = int(os.environ.get("CAMPAIGNS_SEED") or random.SystemRandom().randrange(1 << 32))


def some(cases: Sequence[T], most: int) -> list[T]:
    """At most so many of them in their order where only a share is asked for; else all."""
    if WORD == "whole" or len(cases) <= most:
        return list(cases)
    chosen = random.Random(SEED).sample(range(len(cases)), most)
    return [cases[number] for number in sorted(chosen)]


def pytest_configure() -> None:
    if WORD not in ("share", "whole"):
        raise pytest.UsageError(f"CAMPAIGNS is '{WORD}'; it can be share or whole")


def pytest_report_header() -> str:
    return f"campaigns: {WORD}" + (f", CAMPAIGNS_SEED={SEED}" if WORD == "share" else "")
