"""The front as a whole, model.py included, on a simulated machine: whatever clients, ranks, peers
and the operating system do, every request is answered or refused once, with its own answer, in
time; and nothing grows.

Seeds are by chance and printed. In the environment SIMULATION_SEED=N repeats a run and shrinks what
it finds, SIMULATION_STEPS=N makes it longer or shorter. Sequences that were found stand below, each
with what it showed.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle

import pytest

from tests.simulation.clients import Front, product
from tests.simulation.rounds import PARTS, everything_as_before, run
from tests.simulation.world import World

# What a stub that was killed had open is closed by nobody but the simulated kernel.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
_ = everything_as_before


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS)
def test_every_request_is_answered_once_with_its_own_answer(part: int) -> None:
    run(Front, part, steps=20_000 if part else 2_500)


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
