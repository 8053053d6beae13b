"""Many runs of the state machine, with seeds that are printed."""

from __future__ import annotations

import gc
import time

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from .clients import Front

_ROUND = 60
"""Runs from one seed, of up to 50 steps."""
_SETTINGS = settings(
    max_examples=_ROUND,
    stateful_step_count=50,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)


def campaign(steps: int, first: int, *, shrink: bool = False) -> None:
    """Takes that many steps, in rounds with the seeds `first`, `first + 1`, ...

    Raises:
        AssertionError: something did not hold; its notes tell the way there, and with `shrink` the
            shortest way, which takes minutes.
    """
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    chosen = settings(_SETTINGS, phases=phases)
    began, before, number = time.monotonic(), Front.steps, first
    gc.collect()
    gc.freeze()  # Of what there is nothing becomes garbage, so that a run's own is found quickly.
    gc.disable()  # What closes when it is collected would close at another time in each run.
    try:
        while (taken := Front.steps - before) < steps:
            spent = time.monotonic() - began
            print(f"{taken} steps after {spent:.0f} s; SIMULATION_SEED={number}", flush=True)
            run_state_machine_as_test(seed(number)(Front), settings=chosen)
            number += 1
    finally:
        gc.enable()
        gc.unfreeze()
    print(f"{taken} steps in {time.monotonic() - began:.0f} s")
