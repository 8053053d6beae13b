"""Faults, committed against a child process that stands for a rank, and undone again."""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clients.chaos.faults import KINDS
from clients.chaos.journal import Journal
from clients.chaos.new_version import versions
from clients.chaos.processes import state
from clients.chaos.scene import Scene
from clients.chaos.target import Status, Target
from tests.support.processes import until


@pytest.fixture
def rank() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


class FakeHouse(Target):
    """Its server is this process; it has one model with one rank, and sees its versions."""

    def __init__(self, pids: list[int], folder: Path) -> None:
        self.pids, self.folder = pids, folder

    def status(self) -> Status:
        replica = {"state": "serving", "ranks": self.pids}
        ready = {"ready": True, "reason": ""}
        model = {"versions": versions(self.folder)[-1:], "stubs": [], "replicas": [replica]}
        said = {"watcher": os.getpid(), "server": {"pid": None}, "models": {"m": ready | model}}
        return Status.parse(ready | said)


@pytest.fixture
def scene(rank: "subprocess.Popen[bytes]", tmp_path: Path) -> Scene:
    (tmp_path / "m" / "1").mkdir(parents=True)
    unused: Any = None
    exam: Any = SimpleNamespace(model="m")
    return Scene(
        target=FakeHouse([rank.pid], tmp_path / "m"),
        exams=[exam],
        behind={"m": ["m"]},
        connect=unused,
        journal=Journal(),
        order=random.Random(0),
        rate=50.0,
        freeze_seconds=(1.5, 1.6),
        patience=10.0,
        repository=tmp_path,
    )


def is_stopped(process: "subprocess.Popen[bytes]") -> bool:
    return state(process.pid) == "stopped"


@pytest.mark.parametrize("kind", ["kill", "term", "segfault"])
def test_a_struck_rank_is_dead(kind: str, scene: Scene, rank: "subprocess.Popen[bytes]") -> None:
    with KINDS[kind].commit(scene) as harm:
        assert rank.wait() < 0
        assert harm.what == "rank 0 of m"
        assert not harm.healed(scene.target.status()), "it names the dead one still"


def test_a_frozen_rank_is_resumed(scene: Scene, rank: "subprocess.Popen[bytes]") -> None:
    with KINDS["freeze"].commit(scene) as harm:
        until(lambda: is_stopped(rank))
        assert not harm.healed(scene.target.status())
        until(lambda: not is_stopped(rank))
        until(lambda: harm.healed(scene.target.status()))
    with suppress(KeyboardInterrupt), KINDS["freeze"].commit(scene):
        until(lambda: is_stopped(rank))
        raise KeyboardInterrupt
    until(lambda: not is_stopped(rank))
    assert rank.poll() is None


def test_a_reload_takes_a_version_in_and_out(scene: Scene) -> None:
    with KINDS["reload"].commit(scene) as harm:
        assert harm.what == "m with version 2"
        assert harm.healed(scene.target.status())
    assert versions(scene.repository / "m") == [1]
