"""model.py as Triton runs it: what `execute` returns is read only after that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from python_mp import layout
from python_mp.config import ModelConfig
from python_mp.front import replica
from python_mp.rank.engines.echo import RAISE, REFUSE
from tests.support.harness import (
    LIMIT,
    NO_FAULT,
    echo_config,
    echo_input,
)
from tests.support.triton_stub import ROOT, InferenceRequest, TritonError, arguments, execute, load

pytestmark = pytest.mark.usefixtures("one_forkserver")

ROUNDS = 10


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[ModelConfig], Any]]:
    """`start(config)`: the active instance of a model with one replica."""
    monkeypatch.setenv("PYTHON_MP_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("python_mp"), "handlers", [])
    monkeypatch.setattr(replica, "_QUICK_SECONDS", LIMIT)
    module = load(ROOT / "backends" / "python_mp" / "model.py", monkeypatch)
    module.WINDOW_SECONDS = LIMIT  # However slow this machine is, all is returned.
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


@pytest.mark.parametrize("pipeline", [1, 2])
def test_one_refused_among_many_changes_nobodys_answer(
    start: Any, tmp_path: Path, pipeline: int
) -> None:
    model = start(echo_config(tmp_path, pipeline_parallel_size=pipeline))
    faults = [NO_FAULT] * 7 + [(REFUSE, 0, 9)]
    for first in range(0, 8 * ROUNDS, 8):
        requests = [
            InferenceRequest(**echo_input(first + n, faults=[fault]))
            for n, fault in enumerate(faults)
        ]
        *good, bad = answers(execute(model, requests))
        assert good == [[first + n] for n in range(7)]
        assert bad == "refused as asked (9)"


def test_more_than_a_batch_holds_is_answered_right(start: Any, tmp_path: Path) -> None:
    model = start(echo_config(tmp_path, max_batch_tokens=4))
    for first in range(0, 32 * ROUNDS, 32):
        wanted = [[first + n] * (1 + n % 3) for n in range(32)]
        requests = [InferenceRequest(**echo_input(*numbers)) for numbers in wanted]
        assert answers(execute(model, requests)) == wanted


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
        hashed.append(model._replica._lock.locked())
        return blake2b(*args, **more)

    monkeypatch.setattr("python_mp.batch.hashlib.blake2b", note)
    poison = echo_input(1, faults=[(RAISE, 0, 5)])
    assert answers(execute(model, [InferenceRequest(**echo_input(4))])) == [[4]]
    assert hashed == [], "while nothing is condemned"
    for _ in range(3):
        (said,) = answers(execute(model, [InferenceRequest(**poison)]))
    assert said == "this request has ended two groups of ranks"
    assert len(hashed) >= 3
    assert not any(hashed)
