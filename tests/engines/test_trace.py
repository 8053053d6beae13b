"""What cannot be compiled is refused by the build, in a sentence that says what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from build_scripts.errors import BuildError
from build_scripts.stand_ins import TracedPeers
from build_scripts.trace import LENGTHS, example, trace
from python_mp.model.config import ModelConfig
from python_mp.model.errors import InvalidInput
from python_mp.rank.engines.aot_inductor import SIZES, AotGraph
from python_mp.sharding.packed import Packed
from tests.support.configs import FP32, INT32, model_config, tensor


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


def test_lengths_of_their_own_are_refused(tmp_path: Path) -> None:
    """Of inputs beside each other, as words and sounds."""
    inputs = [tensor(name, FP32, -1, 4, allow_ragged_batch=True) for name in "XS"]
    counts = [tensor(name, INT32, 1) for name in "NM"]
    outputs = [tensor("Y", FP32, -1, 4)]
    config = model_config(
        tmp_path, [*inputs, *counts], outputs, engine="torch", lengths="N:X+Y, M:S"
    )
    for onnx in (False, True):
        with pytest.raises(BuildError, match="lengths of their own .* take engine torch"):
            trace(Module(lambda _, x: x), config, None, onnx)


class Doubled(nn.Module):
    """Half the picture, doubled, beside the picture: sides must be even."""

    def forward(self, batch: Any, hidden: Tensor | None) -> dict[str, Tensor]:
        image = batch["IMAGE"]
        half = nn.functional.max_pool2d(image, 2, ceil_mode=True)
        return {"Y": torch.cat([half.repeat_interleave(2, 2).repeat_interleave(2, 3), image], 1)}


def test_sizes_that_a_graph_is_not_for_are_refused(tmp_path: Path) -> None:
    """Compiled code reads beyond its inputs, where torch would say that sizes do not fit."""
    image, y = tensor("IMAGE", FP32, 1, -1, -1), tensor("Y", FP32, 2, -1, -1)
    config = model_config(tmp_path, [image], [y], engine="torch")
    traced = trace(Doubled(), config, None, onnx=False, said={"IMAGE": (1, 16, 24)})
    graph = AotGraph.__new__(AotGraph)
    graph._sizes = json.loads(traced.names()[SIZES])
    for shape in [(1, 1, 2, 2), (1, 1, 4, 6), (5, 1, 16, 24), (2, 1, 30, 2)]:
        graph._check({"IMAGE": torch.zeros(shape)})
    for shape in [(1, 1, 3, 2), (2, 1, 16, 9)]:
        with pytest.raises(InvalidInput, match=r"cannot compute IMAGE of .*: it is for sizes wh"):
            graph._check({"IMAGE": torch.zeros(shape)})


@pytest.mark.parametrize("more", [[], ["bias"], ["sinks"], ["sinks", "half the heads"]])
@pytest.mark.parametrize("how", [{}, {"causal": True, "window": 3, "scale": 0.3, "softcap": 2.0}])
def test_both_forms_of_attention_agree(
    config: ModelConfig, how: dict[str, Any], more: list[str]
) -> None:
    """With each other and with torch; and only what is used becomes an input."""
    heads = slice(1, 2) if "half the heads" in more else slice(0, 2)
    sinks = torch.tensor([1.5, -0.5])[heads] if "sinks" in more else None

    def distances(length: int) -> Tensor:
        places = torch.arange(length)
        return (places[:, None] - places).expand(2, -1, -1) / 9.0

    def attended(batch: Any, x: Tensor) -> Tensor:
        rows = x.view(-1, 2, 2)[:, heads]
        bias = distances if "bias" in more else None
        made = batch.attend(rows, rows + 1, rows * 2, sinks=sinks, bias=bias, **how)
        found: Tensor = made.repeat(1, 4 // made.shape[1]) + batch.positions[:, None]
        return found

    tensors = example(config)
    tensors["X"] = torch.randn(sum(LENGTHS), 4, generator=torch.Generator().manual_seed(0))
    traced = [trace(Module(attended), config, None, onnx) for onnx in (False, True)]
    in_rectangles = {"X", "positions", "gather", "segments", "scatter"}
    in_pieces = {"X", "cu_seqlens", "positions"}
    assert {*traced[0].inputs} == (in_rectangles if more else in_pieces)
    assert {*traced[1].inputs} == in_rectangles
    assert traced[0].outputs == traced[1].outputs == ["Y"]
    packed, rectangle = (
        each.program.module()(*(tensors[name] for name in each.inputs))[0] for each in traced
    )
    torch.testing.assert_close(packed, rectangle, rtol=1e-5, atol=1e-5)
    batch = Packed({n: tensors[n].numpy() for n in ("X", "cu_seqlens")}, torch.device("cpu"))
    torch.testing.assert_close(packed, attended(batch, batch["X"]), rtol=1e-5, atol=1e-5)
