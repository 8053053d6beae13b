"""What cannot be compiled is refused by the build, in a sentence that says what to do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from build_scripts.errors import BuildError
from build_scripts.stand_ins import TracedPeers
from build_scripts.trace import LENGTHS, example, trace
from python_mp.model.config import ModelConfig
from tests.support.configs import FP32, model_config, tensor


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    x = tensor("X", FP32, -1, 4, allow_ragged_batch=True)
    return model_config(tmp_path, [x], [tensor("Y", FP32, -1, 4)], engine="torch")


class Module(nn.Module):
    """Y is what `compute(batch, X)` makes."""

    def __init__(self, compute: Any) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, batch: Any, hidden: Tensor | None) -> dict[str, Tensor]:
        return {"Y": self.compute(batch, batch["X"])}


PEERS = TracedPeers(0, 2, onnx=True)


@pytest.mark.parametrize("onnx", [False, True])
@pytest.mark.parametrize(
    ("compute", "sentence"),
    [
        (lambda batch, x: x * len(batch.lengths), "batch.lengths, which a graph cannot have"),
        (lambda _, x: PEERS.all_gather(x), "communicator.all_gather; what is compiled may use"),
        (lambda batch, x: x if x.sum() > 0 else -x, "cannot be exported .*engine torch"),
    ],
)
def test_a_module_that_cannot_be_traced(
    config: ModelConfig, compute: Any, sentence: str, onnx: bool
) -> None:
    with pytest.raises(BuildError, match=sentence):
        trace(Module(compute), config, None, onnx)


def test_both_forms_of_attention_agree(config: ModelConfig) -> None:
    """And only what is used becomes an input."""

    def attended(batch: Any, x: Tensor) -> Tensor:
        rows = x.view(-1, 2, 2)
        attention: Tensor = batch.attend(rows, rows + 1, rows * 2) + batch.positions[:, None]
        return attention

    tensors = example(config)
    tensors["X"] = torch.randn(sum(LENGTHS), 4, generator=torch.Generator().manual_seed(0))
    traced = [trace(Module(attended), config, None, onnx) for onnx in (False, True)]
    assert traced[0].inputs == ["X", "cu_seqlens", "positions"]
    assert {*traced[1].inputs} == {"X", "positions", "gather", "segments", "scatter"}
    assert traced[0].outputs == traced[1].outputs == ["Y"]
    packed, rectangle = (
        each.program.module()(*(tensors[name] for name in each.inputs))[0] for each in traced
    )
    torch.testing.assert_close(packed, rectangle, rtol=1e-5, atol=1e-5)
