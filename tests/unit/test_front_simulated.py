"""The front as a whole, model.py included, on a simulated machine: whatever clients, ranks, peers
and the operating system do, every request is answered or refused once, with its own answer, in
time; and nothing grows.

Seeds are by chance and printed; SIMULATION_SEED=N in the environment repeats a run.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.simulation.campaign import campaign

SEED = int(os.environ.get("SIMULATION_SEED") or random.SystemRandom().randrange(1 << 32))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "steps",
    [20_000, pytest.param(200_000, marks=[pytest.mark.campaign, pytest.mark.timeout(3600)])],
    ids=["short", "long"],
)
def test_every_request_is_answered_once_with_its_own_answer(steps: int) -> None:
    campaign(steps, SEED)
