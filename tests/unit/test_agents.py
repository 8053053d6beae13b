"""What agents and the exchange tell each other: frames, and the lease."""

import asyncio
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.agent import lease
from python_mp.agent.link import Link, LinkError
from python_mp.wire.message import Kind, Message

SAID = st.tuples(st.sampled_from(Kind), st.integers(0, 9), st.integers(0, 1 << 60), st.text())
MESSAGES = SAID.map(lambda said: Message(*said[:3], text=said[3]))
FRAMES = st.tuples(st.integers(0, 1 << 20), MESSAGES, st.binary(max_size=99))


class Written:
    """A StreamWriter that keeps it."""

    def __init__(self) -> None:
        self.data = b""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.data += data


async def received(data: bytes, most: int = 1 << 20) -> list[Any]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    link = Link(reader, SimpleNamespace())  # type: ignore[arg-type]
    link.most = lambda channel: most
    frames = []
    while frame := await link.receive():
        frames.append(frame)
    return frames


def sent(*frames: tuple[int, Message, bytes]) -> bytes:
    written = Written()
    for frame in frames:
        Link(SimpleNamespace(), written).send(*frame)  # type: ignore[arg-type]
    return written.data


@given(st.lists(FRAMES, max_size=4))
def test_frames_arrive_as_they_were_sent(frames: list[tuple[int, Message, bytes]]) -> None:
    assert asyncio.run(received(sent(*frames))) == frames


@given(st.binary(max_size=200), FRAMES, st.data())
def test_what_is_no_frame_is_refused(
    noise: bytes, frame: tuple[int, Message, bytes], data: st.DataObject
) -> None:
    """Random bytes, and a frame of which a byte is another one or the rest is missing."""
    whole = sent(frame)
    place = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (noise, whole[:place], whole[:place] + noise[:1] + whole[place + 1 :]):
        with suppress(LinkError):
            asyncio.run(received(wrong))


def test_a_frame_that_says_it_is_huge_is_not_waited_for() -> None:
    with pytest.raises(LinkError, match="too long"):
        asyncio.run(received(sent((0, Message(Kind.PULSE), bytes(5000))), most=4096))


def test_a_slow_connection_is_heard_of_while_a_frame_arrives() -> None:
    """Also if that takes longer than a lease."""

    async def heard() -> list[float]:
        reader = asyncio.StreamReader()
        link = Link(reader, SimpleNamespace())  # type: ignore[arg-type]
        receiving = asyncio.create_task(link.receive())
        times = []
        for byte in sent((0, Message(Kind.PULSE), b"")):
            link.heard = -1.0
            reader.feed_data(bytes([byte]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            times.append(link.heard)
        assert await receiving
        return times

    assert -1.0 not in asyncio.run(heard())


class Silent(Link):
    """Nothing is said on it."""

    closed_at = -1.0

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]

    def close(self) -> None:
        self.closed_at = time.monotonic()


def test_the_lease_counts_only_what_one_could_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was stopped for longer than it has not heard what was said meanwhile."""
    now = [0.0]
    waits = iter([1.0, 30.0, 1.0, 1.0, 1.0])

    async def sleep(_: float) -> None:
        now[0] += next(waits)

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(lease, "asyncio", SimpleNamespace(sleep=sleep))
    link = Silent()
    pulses: list[float] = []
    keeping = lease.keep(link, 5.0, lambda: pulses.append(now[0]))
    with pytest.raises(StopIteration):
        keeping.send(None)
    assert pulses == [0.0, 1.0, 31.0, 32.0, 33.0]
    assert link.closed_at == 34.0


def test_what_was_heard_just_now_was_not_heard_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was stopped finds what was said meanwhile; from then on the lease is as long as ever."""
    now = [0.0]
    link = Silent()

    async def sleep(interval: float) -> None:
        now[0] += 60.0 if not now[0] else interval
        if now[0] == 60.0:
            link.heard = now[0]

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(lease, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(StopIteration):
        lease.keep(link, 5.0, lambda: None).send(None)
    assert link.closed_at == 65.0


def test_no_link_is_left_that_nobody_watches() -> None:
    """Its other end might be cut off, and never be missed."""
    link = Silent()

    def pulse() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(lease.keep(link, 5.0, pulse))
    assert link.closed_at > 0
