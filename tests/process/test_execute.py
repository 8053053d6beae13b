"""model.py as Triton runs it; answers once, and right: tests/unit/test_front_simulated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from python_mp.front import replica
from python_mp.model import layout
from python_mp.model.config import ModelConfig
from python_mp.rank.engines.echo import RAISE
from tests.support.configs import echo_config
from tests.support.replicas import LIMIT, echo_input
from tests.support.triton_stub import ROOT, InferenceRequest, TritonError, arguments, execute, load

pytestmark = pytest.mark.usefixtures("one_forkserver")


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[ModelConfig], Any]]:
    """`start(config)`: the active instance of a model with one replica."""
    monkeypatch.setenv("PYTHON_MP_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("python_mp"), "handlers", [])
    monkeypatch.setattr(replica, "_QUICK_SECONDS", LIMIT)
    module = load(ROOT / "backends" / "python_mp" / "model.py", monkeypatch)
    module.instance.WINDOW_SECONDS = LIMIT  # However slow this machine is, all is returned.
    instances = []

    def make(config: ModelConfig) -> Any:
        (placed,) = layout.replicas(config)
        for instance in (*placed.passive, placed.leader):
            instances.append(module.TritonPythonModel())
            instances[-1].initialize(arguments(*config.source[:2], instance.name))
        return instances[-1]

    yield make
    for instance in reversed(instances):
        instance.finalize()


def answers(futures: list[Future[Any]]) -> list[list[int] | str]:
    """Each request's numbers, or what is wrong with it."""
    said: list[list[int] | str] = []
    for future in futures:
        error = future.exception(LIMIT)
        assert isinstance(error, TritonError | None)
        said.append(str(error) if error else future.result()["Y"].ravel().tolist())
    return said


def test_what_cannot_be_queued_is_refused_and_the_next_served(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    model = start(echo_config(tmp_path))
    with monkeypatch.context() as broken:
        broken.setattr(replica.Replica, "_cut", fail)
        requests = [InferenceRequest(**echo_input(n)) for n in range(3)]
        assert answers(execute(model, requests)) == ["the request could not be queued"] * 3
    assert answers(execute(model, [InferenceRequest(**echo_input(4))])) == [[4]]


def test_no_thread_waits_while_a_request_is_hashed(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = start(echo_config(tmp_path))
    hashed = []

    def note(*args: Any, **more: Any) -> Any:
        hashed.append(model._instance._replica._lock.locked())
        return blake2b(*args, **more)

    monkeypatch.setattr("python_mp.model.request.hashlib.blake2b", note)
    poison = echo_input(1, faults=[(RAISE, 0, 5)])
    assert answers(execute(model, [InferenceRequest(**echo_input(4))])) == [[4]]
    assert hashed == [], "while nothing is on the poison list"
    for _ in range(3):
        (said,) = answers(execute(model, [InferenceRequest(**poison)]))
    assert said == "this request has ended two groups of ranks"
    assert len(hashed) >= 3
    assert not any(hashed)
