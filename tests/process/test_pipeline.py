"""Pipeline stages overlap: while one computes a batch, the one before computes the next."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.support.configs import module_config
from tests.support.replicas import LIMIT, served

pytestmark = pytest.mark.usefixtures("one_forkserver")
BATCHES, STAGES = 8, 3
# Each adds ten to the power of its stage, and says when it worked.
STAGE = """
import time
from torch import nn

class Stage(nn.Module):
    def __init__(self, shard):
        super().__init__()
        self.shard = shard

    def forward(self, batch, hidden):
        began = time.monotonic()
        time.sleep(0.1)
        y = (batch["X"] if hidden is None else hidden) + 10 ** self.shard.stage
        with open(self.shard.parameters["log"], "a") as log:
            log.write(f"{self.shard.stage} {began} {time.monotonic()}\\n")
        return {"Y": y} if self.shard.is_last else y

build = Stage
"""


def test_stages_work_at_the_same_time_each_on_one_batch(tmp_path: Path) -> None:
    log = tmp_path / "log"
    more = {"pipeline_parallel_size": STAGES, "max_batch_tokens": 1, "module.log": log}
    requests = [{"X": np.array([[n * 1000]], np.float32)} for n in range(BATCHES)]
    with served(module_config(tmp_path, STAGE, (1,), **more), tmp_path) as replica:
        log.write_text("")  # The warm-up is over.
        answers = [int(f.result(LIMIT)["Y"].item()) for f in replica.ask_all(requests)]
    assert answers == [n * 1000 + 111 for n in range(BATCHES)]
    spans = [tuple(map(float, line.split())) for line in log.read_text().splitlines()]
    assert len(spans) == BATCHES * STAGES
    for one in range(STAGES):
        mine = sorted((began, ended) for stage, began, ended in spans if stage == one)
        assert all(ended <= began for (_, ended), (began, _) in pairwise(mine))
    changes = sorted([(began, 1) for _, began, _ in spans] + [(ended, -1) for *_, ended in spans])
    assert max(np.cumsum([change for _, change in changes])) == STAGES, "all stages at once"
