"""Pipeline stages overlap: while one computes a batch, the one before computes the next."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from python_mp.model.errors import LoadError
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


# Tensors of several dtypes and shapes, some empty, some not contiguous, through three stages.
SEVERAL = """
import torch
from torch import nn

class Stage(nn.Module):
    def __init__(self, shard):
        super().__init__()
        self.stage, self.stages = shard.stage, shard.stages

    def forward(self, batch, hidden):
        x = batch["X"]
        kinds = (torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.uint8, torch.bool)
        if self.stage == 0:
            hidden = {str(kind): x.to(kind).T for kind in kinds}
            return hidden | {"empty": x[:0], "state": x.expand(3, *x.shape), "": x.sum()}
        assert [hidden[str(kind)].dtype for kind in kinds] == list(kinds)
        hidden["state"] = hidden["state"] + 1
        if self.stage < self.stages - 1:
            return hidden
        assert all(torch.equal(hidden[str(kind)], x.to(kind).T) for kind in kinds)
        assert hidden["empty"].shape == (0, 4) and hidden[""] == x.sum()
        return {"Y": hidden["state"].sum(0)}

build = Stage
"""


def test_stages_hand_on_several_tensors_by_name(tmp_path: Path) -> None:
    config = module_config(tmp_path, SEVERAL, pipeline_parallel_size=3, max_batch_tokens=3)
    random = np.random.default_rng(0)
    requests = [{"X": random.integers(0, 5, (1 + n % 3, 4)).astype(np.float32)} for n in range(6)]
    with served(config, tmp_path) as replica:
        for request, answer in zip(requests, replica.ask_all(requests), strict=True):
            np.testing.assert_array_equal(answer.result(LIMIT)["Y"], 3 * request["X"] + 6)


@pytest.mark.parametrize("result", ["{}", "[x]", "{'x': 3}", "{1: x}", "None"])
def test_what_a_stage_cannot_hand_on_is_said(tmp_path: Path, result: str) -> None:
    module = f"""
from torch import nn
class Stage(nn.Module):
    def __init__(self, shard): super().__init__()
    def forward(self, batch, hidden):
        x = batch["X"]
        return {result} if hidden is None else {{"Y": x}}
build = Stage
"""
    config = module_config(tmp_path, module, pipeline_parallel_size=2)
    said = "must return the tensor to hand on, or a dict of some by name"
    with pytest.raises(LoadError, match=said), served(config, tmp_path):
        pass
