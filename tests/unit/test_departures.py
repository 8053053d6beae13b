"""Whose client has gone: only the stream's own parts can say it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from python_mp.machine.net import Net
from python_mp.model.errors import InvalidInput
from python_mp.wire.departures import FOLDER, SIZE, Departures, Whose, address, leave
from tests.support.processes import until
from tests.support.triton_stub import InferenceRequest, load_step

Look = Callable[[Whose], None]


KEY = "k" * 16


class Leaving(InferenceRequest):
    """`leave` is a key, or what somebody sends in its place."""

    def __init__(self, leave: Any) -> None:
        super().__init__()
        self._leave = leave

    def parameters(self) -> str:
        return json.dumps({"leave": self._leave, "max_tokens": 3})


class Cancelled(InferenceRequest):
    def is_cancelled(self) -> bool:
        return True


@pytest.fixture
def departures(tmp_path: Path) -> Iterator[Departures]:
    made = Departures(tmp_path, Net())
    yield made
    made.stop()


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The step behind."""
    handed_on: Any = load_step("handed_on", monkeypatch)
    return handed_on.HandedOn(tmp_path)


@pytest.fixture
def look(step: Any) -> Look:
    """A request to it with that STREAM, whose client has gone."""
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


def test_who_has_the_key_leaves(departures: Departures, step: Any) -> None:
    """Once; another key, and what is over, reach nobody, and nor does what is no key."""
    left: list[str] = []
    departures.expect(lambda: left.append("mine"), KEY)
    departures.forget(departures.expect(lambda: left.append("over"), "o" * 16))
    for key in ("", "x" * 16, KEY[:-1], 7, None, [KEY], "o" * 16, KEY, KEY):
        step.look(Leaving(key))
    until(lambda: bool(left))
    departures.expect(lambda: left.append("the next"), KEY)
    step.look(Leaving(KEY))
    until(lambda: left == ["mine", "the next"])


def test_every_decoder_is_told(departures: Departures, tmp_path: Path) -> None:
    """Also where one of them has died and left its socket."""
    left: list[str] = []
    whose = departures.expect(lambda: left.append("here"), KEY)
    folder = tmp_path / FOLDER
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead, address(folder, "1") as path:
        dead.bind(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        with address(folder, "2") as path:
            other.bind(path)
        other.settimeout(20)
        leave(tmp_path, KEY)
        said = np.frombuffer(other.recv(100), np.int32).tolist()
    assert said == [2, *whose[1:]]
    until(lambda: left == ["here"])


def test_where_no_decoder_is_nobody_is_told(tmp_path: Path) -> None:
    leave(tmp_path, KEY)
