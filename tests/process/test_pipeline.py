"""Pipeline stages overlap: while one computes a batch, the one before computes the next."""

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from python_mp.rank.engines.echo import SLEEP
from tests.support.configs import echo_config, module_config
from tests.support.replicas import LIMIT, echo_input, served

pytestmark = pytest.mark.usefixtures("one_forkserver")
BATCHES = 8
STAGE = """
import time
from torch import nn

def build(shard):
    return Stage(shard)

class Stage(nn.Module):
    '''Adds ten to the power of its stage, and says when it worked.'''

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
"""


@pytest.mark.parametrize("stages", [2, 3])
def test_stages_work_at_the_same_time_each_on_one_batch(tmp_path: Path, stages: int) -> None:
    log = tmp_path / "log"
    more = {"pipeline_parallel_size": stages, "max_batch_tokens": 1, "module.log": log}
    requests = [{"X": np.array([[n * 1000]], np.float32)} for n in range(BATCHES)]
    with served(module_config(tmp_path, STAGE, (1,), **more), tmp_path) as replica:
        log.write_text("")  # The warm-up is over.
        answers = [int(f.result(LIMIT)["Y"].item()) for f in replica.ask_all(requests)]
    assert answers == [n * 1000 + (10**stages - 1) // 9 for n in range(BATCHES)]
    spans = [tuple(map(float, line.split())) for line in log.read_text().splitlines()]
    assert len(spans) == BATCHES * stages
    for one in range(stages):
        mine = sorted((began, ended) for stage, began, ended in spans if stage == one)
        assert all(ended <= began for (_, ended), (began, _) in pairwise(mine))
    changes = sorted([(began, 1) for _, began, _ in spans] + [(ended, -1) for *_, ended in spans])
    assert max(np.cumsum([change for _, change in changes])) == stages, "all stages at once"


def test_a_slow_stage_does_not_hold_up_the_one_before(tmp_path: Path) -> None:
    """Batches sleep in stage 1 and in stage 0 by turns; together they take half the time."""
    seconds = 0.4
    config = echo_config(tmp_path, pipeline_parallel_size=2, max_batch_tokens=1)
    faults = [(SLEEP, 1 - n % 2, int(seconds * 1000)) for n in range(BATCHES)]
    with served(config, tmp_path) as replica:
        began = time.monotonic()
        for future in replica.ask_all([echo_input(n, faults=[f]) for n, f in enumerate(faults)]):
            future.result(LIMIT)
        assert time.monotonic() - began < BATCHES * seconds - 1
