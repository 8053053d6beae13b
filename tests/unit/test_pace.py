"""Prompts beside streams, on a machine whose steps take what they take."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.front.schedule.pace import Pace


@pytest.mark.parametrize("calm", [0.001, 0.06, 0.3])
@pytest.mark.parametrize("a_token", [1e-5, 1e-3, 5e-3])
def test_who_streams_waits_at_most_three_times_as_long(calm: float, a_token: float) -> None:
    pace, draw, prompt, alone = Pace(), random.Random(1), 4000, 4000 * a_token

    def step(streaming: int, prompts: int) -> float:
        seconds = (calm * bool(streaming) + a_token * prompts) * draw.uniform(0.95, 1.05)
        pace.learn(streaming, prompts, seconds)
        return seconds

    step(0, 512)
    for _ in range(20):
        step(16, 0)
    took = []
    while prompt:
        tokens = min(prompt, pace.most(4096 - 16, 16, 1))
        took.append(step(16, tokens))
        prompt -= tokens
    assert max(took) <= 1.1 * max(3 * calm, calm + 17 * a_token)
    assert sum(took) <= 1.7 * alone + 1.1 * calm


def test_until_something_is_known_there_is_no_bound() -> None:
    pace = Pace()
    assert pace.most(100, 4, 1) == 100
    pace.learn(4, 0, 0.01)
    assert pace.most(100, 4, 1) == 100
    pace.learn(4, 50, 0.01)
    assert pace.most(100, 4, 1) == 100, "prompts that cost nothing"


@given(st.integers(1, 64), st.integers(1, 64), st.floats(1e-6, 1.0))
def test_it_grows_with_those_who_wait_and_shrinks_with_those_who_stream(
    streaming: int, begin: int, a_token: float
) -> None:
    pace = Pace()
    pace.learn(streaming, 0, 0.01)
    pace.learn(streaming, 10, 0.01 + 10 * a_token)
    now = pace.most(1000, streaming, begin)
    assert pace.most(1000, streaming + 1, begin) <= now <= pace.most(1000, streaming, begin + 1)
    assert 0 < now <= 1000


@given(st.lists(st.floats(0.001, 60), max_size=7))
def test_steps_that_the_machine_held_up_are_no_measure(held_up: list[float]) -> None:
    pace = Pace()
    for _ in range(10):
        pace.learn(16, 0, 0.05)
    pace.learn(16, 10, 0.06)
    before = pace.most(4096, 16, 1)
    for seconds in held_up:
        pace.learn(16, 0, seconds)
    assert pace.most(4096, 16, 1) == before


def test_a_crowd_that_waits_counts_more_than_one_that_streams() -> None:
    pace = Pace()
    pace.learn(1, 0, 0.01)
    pace.learn(1, 10, 0.02)
    assert pace.most(4096, 1, 31) > 10 * pace.most(4096, 16, 1)


def test_a_calm_step_is_one_of_as_many_streams() -> None:
    """As a burst ends its steps are short ones of few: the next burst is not paced by these."""
    pace = Pace()
    for streaming in (*[32] * 20, *range(31, 0, -1)):
        pace.learn(streaming, 0, 0.01 + 0.002 * streaming)
    pace.learn(32, 100, 0.074 + 100 * 0.001)
    assert pace.most(4096, 32, 1) >= 100
    assert pace.most(4096, 1, 0) < 30
