"""State machines over a simulated machine, round after round, each from a seed that is printed."""

import gc
import logging
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.campaigns import some

AGAIN = os.environ.get("SIMULATION_SEED")
SEED = int(AGAIN or random.SystemRandom().randrange(1 << 32))


@pytest.fixture(autouse=True)
def everything_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stub has a process of its own, and so its environment and its log."""
    monkeypatch.setenv("PYTHON_MP_RUNTIME_DIR", "")
    log = logging.getLogger("python_mp")
    monkeypatch.setattr(log, "propagate", False)
    before = log.handlers, log.level
    yield
    log.handlers, level = before
    log.setLevel(level)


ROUND = settings(
    max_examples=60,  # Of up to 50 steps, from one seed.
    stateful_step_count=50,
    phases=[Phase.generate, *([Phase.shrink] if AGAIN else [])],
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
PARTS = [0, *(pytest.param(n, marks=pytest.mark.campaign) for n in some(range(1, 11), 4))]
"""Runs from seeds of their own."""


def run(machine: Any, part: int, steps: int, each: settings = ROUND) -> None:
    """
    Args:
        machine: counts its `steps`.
        steps: at least; SIMULATION_STEPS in the environment says otherwise.
        each: of a round.
    """
    steps = int(os.environ.get("SIMULATION_STEPS", steps))
    began, before, number = time.monotonic(), machine.steps, SEED + 1000 * part
    gc.collect()
    gc.freeze()  # Of what there is nothing becomes garbage, so that a run's own is found quickly.
    gc.disable()  # What closes when it is collected would close at another time in each run.
    try:
        while (taken := machine.steps - before) < steps:
            spent = time.monotonic() - began
            print(f"{taken} steps after {spent:.0f} s; SIMULATION_SEED={number}", flush=True)
            run_state_machine_as_test(seed(number)(machine), settings=each)
            number += 1
    finally:
        gc.enable()
        gc.unfreeze()
        gc.collect()  # Here, where what stubs had open may close.
