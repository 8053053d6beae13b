"""Decoders with the whole front, model.py included, on a simulated machine: whatever clients,
ranks, peers and newer versions do, no stream is lost, doubled, changed or starved, and in the end
every block is free.

Seeds are by chance and printed; SIMULATION_SEED and SIMULATION_STEPS as in test_front_simulated.py.
"""

import gc
import os
import time

import pytest
from hypothesis import seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.streaming import Streams
from tests.support.campaigns import some
from tests.unit.test_front_simulated import ROUND, SEED, everything_as_before

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
_ = everything_as_before


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "part", [0, *(pytest.param(n, marks=pytest.mark.campaign) for n in some(range(1, 11), 4))]
)
def test_every_stream_comes_to_its_own_end(part: int) -> None:
    steps = int(os.environ.get("SIMULATION_STEPS", 20_000 if part else 500))
    examples = settings(ROUND, max_examples=60 if part else 20)
    began, before, number = time.monotonic(), Streams.steps, SEED + 1000 * part
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        while (taken := Streams.steps - before) < steps:
            spent = time.monotonic() - began
            print(f"{taken} steps after {spent:.0f} s; SIMULATION_SEED={number}", flush=True)
            run_state_machine_as_test(seed(number)(Streams), settings=examples)
            number += 1
    finally:
        gc.enable()
        gc.unfreeze()
