"""Pipeline stages overlap: while one computes a batch, the one before computes the next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_mp.rank.engines.echo import SLEEP
from tests.support.harness import (
    FP32,
    Array,
    Served,
    echo_config,
    echo_input,
    model_config,
    served,
    tensor,
)

LIMIT = 30.0
BATCHES = 8

STAGE = """
import time
from torch import nn

def build(shard):
    return Stage(shard)

class Stage(nn.Module):
    '''Takes its time, then adds ten to the power of its stage.'''

    def __init__(self, shard):
        super().__init__()
        self.shard = shard
        self.seconds = float(shard.parameters["seconds"])

    def forward(self, batch, hidden):
        time.sleep(self.seconds)
        y = (batch["X"] if hidden is None else hidden) + 10 ** self.shard.stage
        return {"Y": y} if self.shard.is_last else y
"""


def seconds_for(replica: Served, requests: Sequence[dict[str, Array]]) -> float:
    """All at once, each a batch of its own."""
    start = time.monotonic()
    for future in [replica.ask(**inputs) for inputs in requests]:
        future.result(LIMIT)
    return time.monotonic() - start


@pytest.mark.parametrize("stages", [2, 3])
def test_stages_that_wait_for_each_other_overlap(tmp_path: Path, stages: int) -> None:
    seconds = 0.1
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "module.py").write_text(STAGE)
    parameters: dict[str, Any] = {"module.seconds": seconds}
    config = model_config(
        tmp_path,
        [tensor("X", FP32, 1)],
        [tensor("Y", FP32, 1)],
        engine="torch",
        pipeline_parallel_size=stages,
        max_batch_tokens=1,
        **parameters,
    )
    requests = [{"X": np.array([[n * 1000]], np.float32)} for n in range(BATCHES)]
    with served(config, tmp_path) as replica:
        one = seconds_for(replica, requests[:1])
        all_of_them = seconds_for(replica, requests)
        futures = replica.ask_all(requests)
        answers = [int(future.result(LIMIT)["Y"].item()) for future in futures]
    serial = BATCHES * stages * seconds
    ideal = (BATCHES + stages - 1) * seconds
    assert one > stages * seconds
    assert ideal < all_of_them < (ideal + serial) / 2
    assert answers == [n * 1000 + (10**stages - 1) // 9 for n in range(BATCHES)]


def test_a_slow_stage_does_not_hold_up_the_one_before(tmp_path: Path) -> None:
    """Batches sleep in stage 1 and in stage 0 by turns; together they take half the time."""
    seconds = 0.1
    config = echo_config(tmp_path, pipeline_parallel_size=2, max_batch_tokens=1)
    faults = [(SLEEP, 1 - n % 2, int(seconds * 1000)) for n in range(BATCHES)]
    with served(config, tmp_path) as replica:
        taken = seconds_for(replica, [echo_input(n, faults=[f]) for n, f in enumerate(faults)])
    assert taken < BATCHES * seconds * 0.8


def test_one_stage_takes_one_batch_at_a_time(tmp_path: Path) -> None:
    config = echo_config(tmp_path, max_batch_tokens=1)
    with served(config, tmp_path) as replica:
        taken = seconds_for(replica, [echo_input(n, faults=[(SLEEP, 0, 50)]) for n in range(4)])
    assert taken > 4 * 0.05
