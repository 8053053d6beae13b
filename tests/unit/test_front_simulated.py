"""The front as a whole, model.py included, on a simulated machine: whatever clients, ranks, peers
and the operating system do, every request is answered or refused once, with its own answer, in
time; and nothing grows.

Seeds are by chance and printed. In the environment SIMULATION_SEED=N repeats a run and shrinks what
it finds, SIMULATION_STEPS=N makes it longer or shorter. Sequences that were found stand below, each
with what it showed.
"""

import gc
import logging
import os
import random
import time
from collections.abc import Iterator, Sequence
from itertools import cycle

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.clients import Front, product
from tests.simulation.world import World
from tests.support.campaigns import some

# What a stub that was killed had open is closed by nobody but the simulated kernel.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "part", [0, *(pytest.param(n, marks=pytest.mark.campaign) for n in some(range(1, 11), 4))]
)
def test_every_request_is_answered_once_with_its_own_answer(part: int) -> None:
    steps = int(os.environ.get("SIMULATION_STEPS", 20_000 if part else 2_500))
    began, before, number = time.monotonic(), Front.steps, SEED + 1000 * part
    gc.collect()
    gc.freeze()  # Of what there is nothing becomes garbage, so that a run's own is found quickly.
    gc.disable()  # What closes when it is collected would close at another time in each run.
    try:
        while (taken := Front.steps - before) < steps:
            spent = time.monotonic() - began
            print(f"{taken} steps after {spent:.0f} s; SIMULATION_SEED={number}", flush=True)
            run_state_machine_as_test(seed(number)(Front), settings=ROUND)
            number += 1
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.fixture
def world() -> Iterator[World]:
    """Two replicas of one rank each; calm in the end."""
    made = World(product(), seed=1)
    try:
        yield made
        made.calm()
    finally:
        made.close()


def ask(world: World, replica: int, *kinds: str, widths: Sequence[int] = (1,)) -> None:
    """In one call. Requests of unequal width share no batch."""
    pairs = zip(kinds, cycle(widths), strict=False)
    new = [(kind, *world.new(kind, width, [1], 0)) for kind, width in pairs]
    call = world.call(replica, [(number, kind, inputs, 0) for kind, number, inputs in new])
    world.machine.run(lambda: call.done, 3)
    world.check()


def test_one_refused_request_leaves_the_others_their_own_answers(world: World) -> None:
    """They were overwritten by those of later batches before Triton had read them."""
    ask(world, 0, "refused", *["good"] * 5, widths=(1, 2))


def test_what_goes_back_into_the_queue_waits_no_longer_than_its_time_out() -> None:
    """Its batch is refused, it is to be asked again by itself, and the ranks are frozen with what
    was before it. Nothing had waited: nobody looked at the queue."""
    state = Front()
    state.start(0, (2, 1), 0.3, 0.0)
    state.call(
        1,
        [
            *[("good", (1, [9]), 0, 0)] * 2,
            ("slow", (2, [1]), 1, 0),
            ("refused", (2, [1]), 0, 100_000),
        ],
    )
    state.stop_rank(1, 0)
    for _ in range(40):
        state.pass_time(0.1)
        state.holds()
    state.teardown()
