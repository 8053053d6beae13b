"""Prompts beside streams, on a machine whose steps take what they take."""

import random

import pytest

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
        tokens = min(prompt, pace.most(4096 - 16))
        took.append(step(16, tokens))
        prompt -= tokens
    assert max(took) <= max(3 * calm, calm + 17 * a_token * 1.05)
    assert sum(took) <= 1.7 * alone + 1.1 * calm


def test_until_something_is_known_there_is_no_bound() -> None:
    pace = Pace()
    assert pace.most(100) == 100
    pace.learn(4, 0, 0.01)
    assert pace.most(100) == 100
    pace.learn(4, 50, 0.01)
    assert pace.most(100) == 100, "prompts that cost nothing"
