"""No unexpected error ends the watcher."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from python_mp.machine import net
from server.errors import ServerError
from server.watch import repository
from server.watch.said import read_replicas
from server.watch.state import State
from server.watch.watcher import Watcher
from tests.support.watched import FakeServer, nothing, told


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TICK", "CALM"):
        monkeypatch.setattr(f"server.watch.watcher.{name}", 0.001)
    monkeypatch.setattr("python_mp.machine.backoff.DELAYS", (0.0, 0.01))
    monkeypatch.setattr(net, "PAUSES", (0.0, 0.001, 0.002))


def failing(times: int, error: BaseException, then: Callable[..., Any]) -> Callable[..., Any]:
    """`then`, behind a fault that goes away."""
    left = iter(range(times))

    def call(*args: Any, **more: Any) -> Any:
        if next(left, None) is not None:
            raise error
        return then(*args, **more)

    return call


CALLS = ["is_ready", "request_stop", "stop_if_drained", "wait", "tolerate", "start"]


@pytest.mark.parametrize("call", CALLS)
def test_whatever_fails_it_serves_again_and_drains(call: str) -> None:
    """The server dies once, with every call to it failing a few times."""
    error = OSError(24, "Too many open files")
    seen: list[State] = []

    def dies(server: FakeServer) -> None:
        setattr(server, call, failing(3, error, getattr(server, call)))
        server.ended = -9

    def notes(_: FakeServer) -> None:
        seen.append(watcher.state)

    server = FakeServer(nothing, dies, notes, nothing, told(signal.SIGTERM))
    watcher = Watcher(server, print)  # type: ignore[arg-type]
    watcher.run()
    assert seen[-1] is State.SERVING
    assert watcher.state is State.ENDED


def test_a_first_start_that_fails_is_the_end() -> None:
    server = FakeServer()
    server.start = failing(1, OSError(28, "No space left"), server.start)  # type: ignore[method-assign]
    with pytest.raises(ServerError, match="cannot be started: .*No space left"):
        Watcher(server, print).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b'{"pid": 1', b"[]", b"\xff\xfe", b'{"pid": 1}'])
def test_half_a_status_file_hides_no_other(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / "half.json").write_bytes(content)
    whole = {"model": "m", "version": 1, "replica": 0, "pid": 1, "state": "serving", "reason": ""}
    (tmp_path / "status" / "whole.json").write_text(json.dumps(whole))
    assert read_replicas(tmp_path) == [whole]


@pytest.mark.parametrize("call", ["iterdir", "lstat"])
def test_a_fault_of_the_disk(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").touch()
    changes = repository.Changes(tmp_path)

    def fault(_: Path) -> Any:
        raise OSError(5, "a fault")

    with monkeypatch.context() as faulty:
        faulty.setattr(Path, call, fault)
        for _ in range(3):
            try:
                assert list(changes.poll(set())) == []
            except OSError:
                continue
    assert [list(changes.poll(set())) for _ in range(3)] == [[], [], []]
