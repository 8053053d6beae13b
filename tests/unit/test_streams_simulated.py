"""Decoders with the whole front, model.py included, on a simulated machine: whatever clients,
ranks, peers and newer versions do, no stream is lost, doubled, changed or starved, and in the end
every block is free.

Seeds are by chance and printed; SIMULATION_SEED and SIMULATION_STEPS as in test_front_simulated.py.
"""

import pytest
from hypothesis import settings

from tests.simulation.rounds import PARTS, ROUND, everything_as_before, run
from tests.simulation.streaming import Streams

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
_ = everything_as_before


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS)
def test_every_stream_comes_to_its_own_end(part: int) -> None:
    most, steps = (60, 20_000) if part else (20, 500)
    run(Streams, part, steps, settings(ROUND, max_examples=most))
