"""Bounds that bound, on a replica of echo ranks: no request and no model gets past them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_mp.front import group as group_module
from python_mp.front.group import Group
from python_mp.model.errors import RequestFailed, Unavailable
from python_mp.rank.engines.echo import SLEEP
from tests.support.configs import FP32, INT32, echo_config, model_config, tensor
from tests.support.processes import until
from tests.support.replicas import LIMIT, Array, ask, counted, served, values

pytestmark = pytest.mark.usefixtures("one_forkserver")

TOKENS = 8


def rows(count: int, length: int = 3) -> dict[str, Array]:
    """That many sequences, all different."""
    ids = np.arange(count * length, dtype=np.int32).reshape(count, length)
    return {"X": ids, "FAULT": np.zeros((count, 3), np.int32)}


def test_the_queue_counts_requests_not_parts(tmp_path: Path) -> None:
    config = echo_config(tmp_path, max_batch_tokens=TOKENS, max_queue_requests=2)
    with served(config, tmp_path) as replica:
        busy = ask(replica, 0, fault=(SLEEP, 0, 300))
        until(lambda: counted(replica, "requests_total") == [1])
        large, small, late = (replica.ask(**rows(count)) for count in (30, 20, 2))
        with pytest.raises(Unavailable, match=r"queue is full \(2 requests\)"):
            late.result(LIMIT)
        assert np.array_equal(large.result(LIMIT)["Y"], rows(30)["X"])
        assert np.array_equal(small.result(LIMIT)["Y"], rows(20)["X"])
        assert values([busy]) == [[0]]


def test_three_hundred_inputs_are_carried(tmp_path: Path) -> None:
    inputs = [tensor(f"F{n}", FP32, 1) for n in range(300)]
    outputs = [tensor(f"G{n}", FP32, 1) for n in range(300)]
    config = model_config(tmp_path, inputs, outputs, engine="echo", tensor_parallel_size=2)
    with served(config, tmp_path) as replica:
        asked = {f"F{n}": np.full((2, 1), n, np.float32) for n in range(300)}
        answer = replica.ask(**asked).result(LIMIT)
        assert all(np.array_equal(answer[f"G{n}"], asked[f"F{n}"]) for n in range(300))


def test_an_exception_on_the_way_to_the_ranks_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Group.forward

    def fails(group: Group, batch: Any) -> Any:
        if batch.id % 2:
            raise MemoryError("for the third time today")
        return forward(group, batch)

    with served(echo_config(tmp_path), tmp_path) as replica:
        monkeypatch.setattr(Group, "forward", fails)
        failed, answered = 0, 0
        for number in range(8):
            if ask(replica, number).exception(LIMIT):
                failed += 1
            else:
                answered += 1
        assert (failed, answered) == (4, 4)
        assert counted(replica, "restarts_total", "queue_requests") == [0, 0]


def test_an_output_without_rows_frees_its_slot(tmp_path: Path) -> None:
    """Echo gives back X, which has another shape than Y is said to have."""
    config = model_config(
        tmp_path, [tensor("X", INT32, 3)], [tensor("Y", INT32, 3, 1)], engine="echo"
    )
    with served(config, tmp_path) as replica:
        for _ in range(4):
            with pytest.raises(RequestFailed, match=r"rows of shape \[3\]; in .*\[3, 1\]"):
                replica.ask(X=np.ones((1, 3), np.int32)).result(LIMIT)
        assert counted(replica, "restarts_total") == [0]


def test_a_quota_is_shared_by_the_ranks_of_all_replicas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_by = []
    monkeypatch.setattr(group_module, "quota", lambda: 8.0)
    monkeypatch.setattr(group_module, "threads", lambda *a: shared_by.append(a[1:]) or 1)
    config = echo_config(tmp_path, replicas=4, tensor_parallel_size=2)
    with served(config, tmp_path, index=1) as replica:
        assert values([ask(replica, 1)]) == [[1]]
    assert shared_by == [(8, 8.0)] * 2
