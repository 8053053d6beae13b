"""How far a start is, told from what a tritonserver leaves to be seen."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.process import progress
from server.process.log import Log
from server.process.progress import STUCK_SECONDS, Progress
from server.settings import Settings
from server.watch import stubs
from server.watch.stubs import Stub

HOUR = 3600


class Start:
    """A start with the models `big` and `small`, looked at once a second."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, limit: float | None) -> None:
        self.said: list[str] = []
        self.living: list[Stub] = []
        self.zombies = 0
        self.used = 0.0
        self.now = 0.0
        self.log = Log(print)
        for name in ("big", "small"):
            (folder / name).mkdir()
            (folder / name / "config.pbtxt").touch()
        patch.setattr(stubs, "living", lambda _: self.living)
        patch.setattr(stubs, "zombies", lambda _: self.zombies)
        patch.setattr(progress, "_processor_seconds", lambda _: self.used)
        patch.setattr(progress.time, "monotonic", lambda: self.now)
        server = SimpleNamespace(
            settings=Settings(folder, load_timeout=limit), log=self.log, pid=os.getpid()
        )
        self._progress = Progress(server, self.said.append)  # type: ignore[arg-type]

    def goes_on(self, seconds: int, each: Callable[[], Any] = lambda: None) -> str:
        """Why it was given up, if it was."""
        for _ in range(seconds):
            self.now += 1
            each()
            if why := self._progress.look(self.now):
                return why
        return ""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    return Start(tmp_path, monkeypatch, None)


def stub(name: str) -> Stub:
    return Stub(1, name, 1, f"{name}_0_0", "segment")


def test_a_model_may_load_for_hours(start: Start) -> None:
    start.living = [stub("big")]
    start.zombies = 1  # of some other model, which failed
    start.log.ready = {"small"}
    assert start.goes_on(2 * HOUR) == ""
    assert start.said[:2] == [f"still loading after {60 * n} s: big" for n in (1, 2)]
    assert len(start.said) == 120
    start.living = []

    def computes() -> None:
        start.used += 0.5

    assert start.goes_on(HOUR, computes) == "", "so it may without stubs"


def test_stubs_that_aborted_are_not_waited_for(start: Start) -> None:
    start.log.tail = ["terminate called", "  what():  stol"]
    start.log.failures = {"small": "why"}
    start.zombies = 1
    why = start.goes_on(HOUR)
    assert why == "stubs of big aborted while they started: terminate called;   what():  stol"
    assert STUCK_SECONDS <= start.now < STUCK_SECONDS + 5


def test_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Start(tmp_path, monkeypatch, 90.0)
    start.living = [stub("big")]
    assert start.goes_on(HOUR) == "the server was not ready within 90 s (--load-timeout-secs)"
    assert start.now == 91
