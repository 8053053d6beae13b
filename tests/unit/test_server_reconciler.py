"""What the watcher of the models does after an error of its own."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from python_mp.machine.net import Net
from server.control import Version
from server.watch.events import Events
from server.watch.reconciler import Reconciler
from server.watch.stubs import Stub
from tests.support.processes import until

STUB = Stub(os.getpid(), "m", 1, "lead_0", "run_1_shm")
CONFIG = {"backend": "python", "instance_group": [{"name": "lead", "count": 1}]}


class Roster:
    """Whose only stub dies once."""

    def __init__(self) -> None:
        self.living = [STUB]
        self.dead: list[Stub] = []

    def look(self, now: float, *, interval: float) -> list[Stub]:
        dead, self.dead = self.dead, []
        return dead

    def die(self) -> None:
        self.living, self.dead = [], [STUB]


def reconciler(folder: Path, loads: list[str]) -> tuple[Reconciler, Roster, Any]:
    control = SimpleNamespace(
        config=lambda _: dict(CONFIG), load=lambda name, _: loads.append(name)
    )
    run = SimpleNamespace(
        folder=folder, prefix="run_1_", segments_changed=lambda: 0, hide_segments=lambda: None
    )
    server: Any = SimpleNamespace(
        net=Net(say=lambda _: None), run=run, control=control, log=SimpleNamespace(failures={}),
        settings=SimpleNamespace(model_repository=folder, exit_timeout=1),
    )  # fmt: skip
    made = Reconciler(server, Events(), lambda _: None, watch=False)
    probe: Any = SimpleNamespace(
        versions=[Version("m", 1, "READY")], answers=0, hurry=lambda _: None, close=lambda: None
    )
    roster: Any = Roster()
    made._probe, made._roster = probe, roster
    return made, roster, probe


def look(watched: Reconciler, probe: Any) -> None:
    probe.answers += 1
    watched._net["the models' watch"]._due = 0.0  # without its pause
    watched.tick()


@pytest.mark.parametrize("step", ["_remove_segments", "_see", "_revive"])
def test_no_death_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whatever step of the look fails: the roster tells a death only once."""
    watched, roster, probe = reconciler(tmp_path, loads := [])
    for _ in range(5):
        look(watched, probe)
    roster.die()

    def fails(*_: object) -> None:
        raise OSError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(Reconciler, step, fails)
        look(watched, probe)
    for _ in range(200):
        look(watched, probe)
    watched._loads.close()
    for thread in watched._loads._jobs._pool._threads:
        thread.join(10)
    assert "m" in loads
    watched._events.close()


def test_an_index_from_before_an_unload_brings_nothing_back(tmp_path: Path) -> None:
    watched, _, probe = reconciler(tmp_path, [])
    watched._server.control.unload = lambda _: None  # type: ignore[method-assign]
    look(watched, probe)
    assert "m" in watched.models
    watched._loads.unload_removed("m", print, lambda: watched._forget("m"))
    until(lambda: (watched.tick(), "m" not in watched.models)[1])
    look(watched, probe)  # Triton was asked while the model was still there
    assert "m" not in watched.models
    look(watched, probe)  # somebody has loaded it again
    assert "m" in watched.models


def test_nobody_waits_for_a_new_model_while_it_is_loaded(tmp_path: Path) -> None:
    """It is no reason to be not ready."""
    watched, _, probe = reconciler(tmp_path, [])
    loading, may_end = threading.Event(), threading.Event()

    def load(_: str) -> None:
        loading.set()
        may_end.wait(30)

    watched._server.control.load = load  # type: ignore[method-assign, assignment]
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.pbtxt").touch()
    changes: Any = SimpleNamespace(poll=lambda _: [("new", True)], again=print, unbuilt={})
    watched._follow(changes)
    assert loading.wait(30)
    look(watched, probe)
    assert "new" not in watched.models
    may_end.set()
    until(lambda: (watched.tick(), "new" in watched.models)[1])
    assert watched.models["new"].reloads == {"succeeded": 1, "failed": 0}
