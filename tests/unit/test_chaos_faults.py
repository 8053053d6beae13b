"""Faults, committed against a child process that stands for a rank, and undone again."""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.chaos import faults
from clients.chaos.faults import KINDS
from clients.chaos.house import House, Status
from clients.chaos.journal import Journal, Outcome
from clients.chaos.processes import HouseError, stat
from clients.chaos.publish import versions
from clients.chaos.questions import Exam, Question
from clients.chaos.scene import Scene
from tests.support.harness import until


@pytest.fixture
def rank() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


class FakeHouse(House):
    """Its server is this process; it has one model with one rank, and sees its versions."""

    def __init__(self, pids: list[int], folder: Path) -> None:
        self.pids, self.folder = pids, folder

    def status(self) -> Status:
        replica = {"state": "serving", "ranks": self.pids}
        model = {
            "ready": True,
            "reason": "",
            "versions": versions(self.folder)[-1:],
            "stubs": [],
            "replicas": [replica],
        }
        server = {"pid": None}
        said = {"ready": True, "reason": "", "watcher": os.getpid(), "server": server}
        return Status.parse({**said, "models": {"m": model}})


class Connection:
    """Answers at once: squares, or CANCELLED if it is told so."""

    def ask_later(self, question: Question, number: int, answered: Any) -> "Connection":
        answered(Answer(question, number), None)
        return self

    def cancel(self) -> None:
        """Too late."""

    def close(self) -> None:
        """Nothing is open."""


class Answer:
    def __init__(self, question: Question, number: int) -> None:
        self._question, self._number = question, number

    def get_response(self) -> dict[str, Any]:
        return {"id": str(self._number), "outputs": [{"name": "Y"}]}

    def as_numpy(self, _: str) -> Any:
        return np.square(self._question.inputs["X"])


@pytest.fixture
def scene(rank: "subprocess.Popen[bytes]", tmp_path: Path) -> Scene:
    (tmp_path / "m" / "1").mkdir(parents=True)
    tensor = {"name": "X", "datatype": "FP32", "shape": [-1, 4]}
    exam = Exam({"name": "m", "inputs": [tensor]}, 1e-3)
    exam.learn(lambda question: {"Y": np.square(question.inputs["X"])})
    connection: Any = Connection()
    return Scene(
        house=FakeHouse([rank.pid], tmp_path / "m"),
        exams=[exam],
        behind={"m": ["m"]},
        connect=lambda protocol: connection,
        journal=Journal(),
        order=random.Random(0),
        rate=50.0,
        freeze_seconds=(0.3, 0.4),
        patience=10.0,
        repository=tmp_path,
    )


def is_stopped(process: "subprocess.Popen[bytes]") -> bool:
    return stat(process.pid)[:1] == ["T"]


@pytest.mark.parametrize("kind", ["kill", "term", "segfault"])
def test_a_struck_rank_is_dead(kind: str, scene: Scene, rank: "subprocess.Popen[bytes]") -> None:
    with KINDS[kind].commit(scene) as harm:
        assert rank.wait() < 0
        assert harm.what == "rank 0 of m"
        assert not harm.healed(scene.house.status()), "it names the dead one still"


def test_a_frozen_rank_is_resumed_in_time(scene: Scene, rank: "subprocess.Popen[bytes]") -> None:
    with KINDS["freeze"].commit(scene) as harm:
        until(lambda: is_stopped(rank))
        assert not harm.healed(scene.house.status())
        until(lambda: not is_stopped(rank), 5)
        until(lambda: harm.healed(scene.house.status()), 5)
    assert rank.poll() is None


def test_a_frozen_rank_is_resumed_after_ctrl_c(
    scene: Scene, rank: "subprocess.Popen[bytes]"
) -> None:
    def interrupted() -> None:
        with KINDS["freeze"].commit(scene):
            until(lambda: is_stopped(rank))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    until(lambda: not is_stopped(rank))


def test_a_reload_takes_a_version_in_and_out(scene: Scene) -> None:
    with KINDS["reload"].commit(scene) as harm:
        assert harm.what == "m with version 2"
        assert harm.healed(scene.house.status())
    assert versions(scene.repository / "m") == [1]


@pytest.mark.parametrize("kind", ["stub", "server"])
def test_what_is_not_there_cannot_be_hit(kind: str, scene: Scene) -> None:
    with pytest.raises(HouseError), KINDS[kind].commit(scene):
        pass


def test_bursts_send_what_they_should(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FLOOD_SECONDS", 0.2)
    monkeypatch.setattr(faults, "CANCEL_SECONDS", 0.2)
    with KINDS["flood"].commit(scene) as harm:
        assert harm.what == "40 requests", "4 times 50 a second"
    with KINDS["cancel"].commit(scene) as harm:
        assert harm.what == "10 requests"
    assert scene.journal.counts == {Outcome.RIGHT: 50}


def test_only_what_takes_capacity_or_a_stub_may_refuse() -> None:
    assert {name for name, kind in KINDS.items() if kind.may_refuse} == {"flood", "stub", "server"}
