"""Builds that are killed, that meet, that run out of disk: the repository stays sound."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import FakeStage, Workshop, workshop
from tests.support.processes import until

SURVIVED = 0


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return workshop(tmp_path, monkeypatch)


def forked(work: Callable[[], object]) -> int:
    """A process that does `work`; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = SURVIVED
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """How the process ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


CHANGES = (
    (os, "fsync"),
    (os, "rename"),
    (os, "unlink"),
    (os, "rmdir"),
    (shutil, "copyfile"),
    (Path, "write_text"),
    (Path, "rename"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (FakeStage, "run"),
)
"""Before each of these calls a build can be killed."""


def kill_before_change(number: int) -> None:
    """From here on this process dies before its change number `number`."""
    left = iter(range(number))

    def killing(change: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: Any, **named: Any) -> object:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **named)

        return wrapped

    for owner, name in CHANGES:
        setattr(owner, name, killing(getattr(owner, name)))


def state(tiny: Workshop) -> dict[str, bytes]:
    """The repository, without what differs from build to build."""
    return {name: data for name, data in tiny.state().items() if "manifest.json" not in name}


def test_killed_anywhere_the_next_build_finds_a_sound_repository(
    tiny: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # A hundred builds, and no power is cut.
    tiny.build()
    tiny.edit("recipe.toml", "[shapes]", 'engine = "onnxruntime"\n[shapes]')
    untouched, kept = tiny.state(), tiny.repository.parent / "kept"
    shutil.copytree(tiny.repository, kept)
    tiny.build()
    wanted = state(tiny)
    assert {"1/rank0.safetensors", "2/rank0.onnx"} < wanted.keys()
    deaths = 0
    restore(tiny, kept)
    while kill(tiny, before_change=deaths) != SURVIVED:
        assert_sound(tiny, untouched)
        tiny.build()
        assert state(tiny) == wanted
        assert not list(tiny.repository.parent.rglob(".building-*"))
        restore(tiny, kept)
        deaths += 1
    assert deaths > 30


def restore(tiny: Workshop, kept: Path) -> None:
    for folder in (tiny.repository, tiny.workspace):
        shutil.rmtree(folder)
    shutil.copytree(kept, tiny.repository)
    tiny.workspace.mkdir()


def kill(tiny: Workshop, *, before_change: int) -> int:
    """A build that is killed before that change; how its process ended."""

    def build() -> None:
        kill_before_change(before_change)
        tiny.build()

    code = ended(forked(build))
    assert code in (SURVIVED, -signal.SIGKILL)
    return code


def assert_sound(tiny: Workshop, untouched: dict[str, bytes]) -> None:
    """The repository is as it was, or has a whole new version besides."""
    found = tiny.state()
    new = {name for name in found if name.startswith("2/")}
    assert new in (set(), {"2/manifest.json", "2/rank0.onnx", "2/rank1.onnx"})
    assert {name: data for name, data in found.items() if name not in new} == untouched


def test_builds_at_once_build_once_and_who_waits_says_so(
    tiny: Workshop, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.repository.parent
    files = tiny.shard.files

    def slow(job: Any) -> dict[str, str]:
        (folder / "started").touch()
        until((folder / "go").exists)
        return files(job)

    tiny.shard.files = slow
    first = forked(tiny.build)
    until((folder / "started").exists)
    others = [forked(tiny.build) for _ in range(2)]
    said: list[str] = []

    def waits() -> bool:
        said.append(capfd.readouterr().err)
        return "another build of it is running; this one waits" in "".join(said)

    until(waits)
    (folder / "go").touch()
    assert [ended(pid) for pid in (first, *others)] == [SURVIVED] * 3
    assert (folder / "ran").read_text() == "ran\n"
    assert tiny.versions() == [1]
