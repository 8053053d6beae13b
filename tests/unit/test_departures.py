"""Whose client has gone: only the stream's own parts can say it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from python_mp.machine.net import Net
from python_mp.model.errors import InvalidInput
from python_mp.wire.departures import SIZE, Departures, Whose
from tests.support.processes import until
from tests.support.triton_stub import InferenceRequest, load_step

Look = Callable[[Whose], None]


class Cancelled(InferenceRequest):
    def is_cancelled(self) -> bool:
        return True


@pytest.fixture
def departures(tmp_path: Path) -> Iterator[Departures]:
    made = Departures(tmp_path, Net())
    yield made
    made.stop()


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """A request to the step behind, with that STREAM, whose client has gone."""
    handed_on: Any = load_step("handed_on", monkeypatch)
    step = handed_on.HandedOn(tmp_path)
    return lambda whose: step.look(Cancelled(STREAM=np.array([whose], np.int32)))


@given(st.data())
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_nobody_ends_the_stream_of_another(
    departures: Departures, look: Look, data: st.DataObject
) -> None:
    """Whoever has one of his own, and all of the other's but one bit."""
    left: list[str] = []
    victim = departures.expect(lambda: left.append("victim"))
    own = departures.expect(lambda: left.append("own"))
    assert not {*victim[1:]} & {*own[1:]}
    number, bit = data.draw(st.integers(1, SIZE - 1)), data.draw(st.integers(0, 31))
    forged = np.array(victim, np.int32)
    forged.view(np.uint32)[number] ^= np.uint32(1 << bit)
    for made_up in (forged.tolist(), (victim[0], *range(SIZE - 1)), own):
        look(tuple(made_up))
    until(lambda: bool(left))
    assert left == ["own"]
    look(victim)
    until(lambda: left == ["own", "victim"])
    departures.forget(victim)


@pytest.mark.parametrize("size", [0, 2, SIZE - 1, 2 * SIZE])
def test_a_stream_of_another_size_is_refused(look: Look, size: int) -> None:
    with pytest.raises(InvalidInput, match=f"STREAM has {size} numbers; a decoder's has {SIZE}"):
        look((1,) * size)
