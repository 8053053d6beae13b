"""What agents and the exchange do by themselves: frames, the lease, the artifact."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.agent import lease
from python_mp.agent.contents import Artifact
from python_mp.agent.fetching import PIECE, Cache, Room
from python_mp.agent.link import Link, LinkError
from python_mp.model.errors import LoadError
from python_mp.wire.message import Kind, Message

SAID = st.tuples(st.sampled_from(Kind), st.integers(0, 9), st.integers(0, 1 << 60), st.text())
MESSAGES = SAID.map(lambda said: Message(*said[:3], text=said[3]))
FRAMES = st.tuples(st.integers(0, 1 << 20), MESSAGES, st.binary(max_size=99))
Fetch = Callable[[str, str, int], Awaitable[bytes]]


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


def test_the_lease_counts_only_what_one_could_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was stopped for longer than it has not heard what was said meanwhile."""
    now = [0.0]
    waits = iter([1.0, 30.0, 1.0, 1.0, 1.0])

    async def sleep(_: float) -> None:
        now[0] += next(waits)

    class Silent(Link):
        closed_at = 0.0

        def close(self) -> None:
            self.closed_at = now[0]

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(lease, "asyncio", SimpleNamespace(sleep=sleep))
    link = Silent(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    pulses: list[float] = []
    keeping = lease.keep(link, 5.0, lambda: pulses.append(now[0]))
    with pytest.raises(StopIteration):
        keeping.send(None)
    assert pulses == [0.0, 1.0, 31.0, 32.0, 33.0]
    assert link.closed_at == 34.0


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A leader's version directory: small files, and one of several pieces."""
    folder = tmp_path / "leader" / "model" / "7"
    (folder / "inside").mkdir(parents=True)
    (folder / "empty").touch()
    (folder / "inside" / "small").write_text("a")
    (folder / "large").write_bytes(Random(1).randbytes(3 * PIECE + 5))
    return folder


def fetching(folder: Path, most: int) -> tuple[Fetch, list[int]]:
    """From there, until the connection ends after so many pieces; and their offsets."""
    offsets: list[int] = []

    async def fetch(_: str, name: str, offset: int) -> bytes:
        if len(offsets) >= most:
            raise ConnectionResetError
        offsets.append(offset)
        return (folder / name).read_bytes()[offset : offset + PIECE]

    return fetch, offsets


def cache_in(folder: Path, fetch: Fetch, most: int = 1 << 30, *in_use: Path) -> Cache:
    return Cache(Room(folder / "cache", most), fetch, lambda: in_use)


def test_what_was_used_longest_ago_makes_room(version: Path, tmp_path: Path) -> None:
    """Not what ranks have, not what is no artifact; and what was left in parts goes, too."""
    digests = []

    def fetch_another(number: int, *in_use: Path) -> Path:
        (version / "inside" / "small").write_text(str(number))
        artifact = Artifact.of(version)
        digests.append(artifact.digest)
        cache = cache_in(tmp_path, fetching(version, 99)[0], 2 * artifact.size, *in_use)
        model = asyncio.run(cache.repository(Path("/nowhere/model"), "7", artifact))
        os.utime(model.parent, (number, number))
        return model / "7"

    (tmp_path / "cache" / "notes").mkdir(parents=True)
    (tmp_path / "cache" / f"{0:064}.part" / "model").mkdir(parents=True)
    (tmp_path / "cache" / f"{0:064}.part" / "model" / "half").write_bytes(bytes(PIECE))
    os.utime(tmp_path / "cache" / f"{0:064}.part", (0, 0))
    first = fetch_another(1)
    fetch_another(2)
    fetch_another(3, first)
    fetch_another(4, first)
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left == {"notes", digests[0], digests[3]}


def test_a_fetch_that_was_cut_goes_on_where_it_was(version: Path, tmp_path: Path) -> None:
    artifact, found = Artifact.of(version), []
    pieces = 5  # One of a small file, four of the large one.
    for most, expected in ((3, 3), (99, pieces - 3), (0, 0)):
        fetch, offsets = fetching(version, most)
        with suppress(ConnectionResetError):
            cache = cache_in(tmp_path, fetch)
            found.append(asyncio.run(cache.repository(Path("/nowhere/model"), "7", artifact)))
        assert len(offsets) == expected
    assert found[0] == found[1]
    assert found[0].name == "model"
    assert Artifact.of(found[0] / "7") == artifact


def test_the_leaders_path_is_taken_only_for_the_same_files(version: Path, tmp_path: Path) -> None:
    artifact, there = Artifact.of(version), version.parent
    cache = cache_in(tmp_path, fetching(version, 0)[0])
    assert asyncio.run(cache.repository(there, "7", artifact)) == there
    (version / "inside" / "small").write_text("b")
    assert Artifact.of(version).digest != artifact.digest
    with pytest.raises(ConnectionResetError):
        asyncio.run(cache.repository(there, "7", artifact))
    (version / "inside" / "small").write_text("a")
    assert Artifact.of(version) == Artifact.from_json(artifact.to_json())


def test_other_bytes_than_announced_are_not_kept(version: Path, tmp_path: Path) -> None:
    artifact = Artifact.of(version)

    async def fetch(_: str, name: str, offset: int) -> bytes:
        return bytes(min(PIECE, artifact.files[name].size - offset))

    cache = cache_in(tmp_path, fetch)
    with pytest.raises(LoadError, match="came with another content than was announced"):
        asyncio.run(cache.repository(Path("/nowhere/model"), "7", artifact))
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert all(path.name == "empty" for path in kept)


@given(st.text(alphabet="./ab", max_size=8))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    folder = Path("/base/folder")
    with suppress(ValueError):
        Artifact.from_json(json.dumps({name: [0, ""]}))
        assert ".." not in Path(name).parts
        assert folder in (folder / name).parents
