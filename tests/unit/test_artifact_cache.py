"""Where an agent finds an artifact: at the leader's path, in its cache, or over its connection."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.agent import contents
from python_mp.agent.contents import Artifact, Hashes
from python_mp.agent.fetching import PIECE, Cache, Room
from python_mp.model.errors import LoadError

Fetch = Callable[[str, str, int], Awaitable[bytes]]


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
    assert left == {"notes", "lock", "hashes.json", digests[0], digests[3]}


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
    kept = [path for path in (tmp_path / "cache").rglob("7/**/*") if path.is_file()]
    assert all(path.name == "empty" for path in kept)


NOWHERE = Path("/nowhere/model")


def test_two_agents_may_share_a_cache(version: Path, tmp_path: Path) -> None:
    """What one of them fetches the other one need not; neither writes where the other does."""
    artifact = Artifact.of(version)
    fetch, offsets = fetching(version, 99)

    async def slowly(*asked: object) -> bytes:
        await asyncio.sleep(0)
        return await fetch(*asked)  # type: ignore[arg-type]

    async def both() -> list[Path]:
        caches = [cache_in(tmp_path, slowly) for _ in range(2)]
        return await asyncio.gather(*(c.repository(NOWHERE, "7", artifact) for c in caches))

    one, other = asyncio.run(both())
    assert one == other
    assert Artifact.of(one / "7") == artifact
    assert len(offsets) == 5


def test_what_is_damaged_in_the_cache_is_fetched_again(version: Path, tmp_path: Path) -> None:
    artifact = Artifact.of(version)
    for count in (5, 0, 5):
        fetch, offsets = fetching(version, 99)
        found = asyncio.run(cache_in(tmp_path, fetch).repository(NOWHERE, "7", artifact))
        assert len(offsets) == count
        assert Artifact.of(found / "7") == artifact
        if not count:
            (found / "7" / "inside" / "small").write_text("b")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read for their hash."""
    names, whole = [], Hashes._digest

    def reading(self: Hashes, path: Path) -> str:
        names.append(path.name)
        return whole(self, path)

    monkeypatch.setattr(Hashes, "_digest", reading)
    return names


@pytest.mark.parametrize("fetched", [False, True])
def test_the_next_agent_reads_only_what_was_touched(
    version: Path, tmp_path: Path, read: list[str], fetched: bool
) -> None:
    artifact = Artifact.of(version)
    there = NOWHERE if fetched else version.parent

    def look() -> list[str]:
        read.clear()
        cache = cache_in(tmp_path, fetching(version, 99)[0])
        found = asyncio.run(cache.repository(there, "7", artifact)) / "7"
        if touch:
            os.utime(found / "large", (0, 0))
        return sorted(read)

    touch = False
    assert look() == ["empty", "large", "small"]
    touch = True
    assert look() == []
    touch = False
    assert look() == ["large"]
    assert look() == []


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"1 1": 1}', '{"1 1": []}', "\udc80", None])
def test_hashes_that_cannot_be_read_or_kept_are_made_again(
    version: Path, tmp_path: Path, damage: str | None
) -> None:
    file = tmp_path / "hashes.json"
    if damage is None:
        file.mkdir()
    else:
        file.write_text(damage, errors="surrogateescape")
    hashes = Hashes(file)
    assert Artifact.of(version, hashes) == Artifact.of(version)
    hashes.keep()
    assert damage is None or len(json.loads(file.read_text())) >= 3


def test_who_stops_does_not_read_to_the_end(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact may be of hundreds of gigabytes."""
    monkeypatch.setattr(contents, "_PIECE", 1)
    hashes = Hashes()
    hashes.stop()
    with pytest.raises(OSError, match="its connection has ended"):
        hashes.of(version / "large")


def test_another_artifact_at_the_leaders_path_is_not_likely(version: Path, tmp_path: Path) -> None:
    """As in an image that was built of another layout."""
    artifact = Artifact.of(version)
    cache = cache_in(tmp_path, fetching(version, 99)[0])
    assert cache.likely(version.parent, "7", artifact) == version.parent
    (version / "inside" / "small").write_text("longer")
    assert cache.likely(version.parent, "7", artifact) is None
    (version / "inside" / "small").unlink()
    assert cache.likely(version.parent, "7", artifact) is None


def test_a_leaders_path_that_cannot_be_read_here_is_as_none(version: Path, tmp_path: Path) -> None:
    artifact = Artifact.of(version)
    cache = cache_in(tmp_path, fetching(version, 99)[0])
    unreadable = Path("/" + "x" * 300) / "model"
    with pytest.raises(OSError, match="name too long"):
        unreadable.is_dir()
    found = asyncio.run(cache.repository(unreadable, "7", artifact))
    assert cache.likely(unreadable, "7", artifact) == found
    assert Artifact.of(found / "7") == artifact


@given(st.text(alphabet="./ab", max_size=8))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    folder = Path("/base/folder")
    with suppress(ValueError):
        Artifact.from_json(json.dumps({name: [0, ""]}))
        assert ".." not in Path(name).parts
        assert folder in (folder / name).parents
