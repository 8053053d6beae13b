"""The graphs of Hugging Face's families compute what transformers computes for one text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from build_scripts.export import save_onnx
from build_scripts.lockstep import Lockstep
from build_scripts.quiet import quiet
from build_scripts.stand_ins import TracedBatch, TracedPeers
from build_scripts.trace import Traced, example, trace
from python_mp.model.config import ModelConfig
from python_mp.sharding.families.transformers import Encoder, longest_text
from python_mp.sharding.packed import Packed
from python_mp.sharding.shard import Shard
from python_mp.sharding.weights import Tensors
from tests.support.campaigns import some
from tests.support.configs import FP32, INT32, model_config, tensor
from tests.support.families import FAMILIES, asked

CPU = torch.device("cpu")
LIKE_ANOTHER = {
    *("roberta", "xlm_roberta", "electra", "eurobert", "mistral", "qwen2", "qwen3"),
    *("gemma3", "siglip", "clip"),
}
"""Families whose graphs are made of what those of others are made of: a campaign."""


def config(name: str, folder: Path) -> ModelConfig:
    out = [tensor("HIDDEN_STATES", FP32, -1, 48)]
    if FAMILIES[name].takes_images:
        return model_config(folder, [tensor("PIXEL_VALUES", FP32, 3, 32, 32)], out, engine="torch")
    ids = tensor("INPUT_IDS", INT32, -1, allow_ragged_batch=True)
    inputs = [ids, tensor("LENGTHS", INT32, 1)]
    return model_config(folder, inputs, out, engine="torch", lengths="LENGTHS")


def traced(model: Any, served: ModelConfig, tp: int, pp: int, *, onnx: bool) -> Iterator[Traced]:
    """The ranks' graphs."""
    given = Tensors(model.state_dict(), torch.float32)
    longest = longest_text(model.config)

    def module(rank: int, *, to_onnx: bool) -> Encoder:
        place = (rank % tp, tp, rank // tp, pp)
        peers = TracedPeers(rank % tp, tp, to_onnx)
        shard = Shard(*place, torch.float32, CPU, Path(), {}, peers, given)
        return Encoder(shard, type(model.config).from_dict(model.config.to_dict())).eval()

    batch = TracedBatch(example(served), is_ragged=served.has_ragged_input)
    hidden: Any = None
    with torch.no_grad():
        for stage in range(pp):
            for rank in range(tp):
                graph = module(stage * tp + rank, to_onnx=onnx)
                yield trace(graph, served, hidden, onnx, longest=longest)
            hidden = module(stage * tp, to_onnx=False)(batch, hidden)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.campaign if name in LIKE_ANOTHER else ())
        for name in FAMILIES
    ],
)
def test_a_program_is_the_model(name: str, tmp_path: Path) -> None:
    """As AOTInductor is given it, in two stages."""
    model, served = FAMILIES[name].make(), config(name, tmp_path)
    inputs, wanted = asked(FAMILIES[name], model)
    batch, hidden = Packed(inputs, CPU), None
    for each in traced(model, served, 1, 2, onnx=False):
        given = batch.graph_inputs(each.inputs, hidden).values()
        hidden = each.program.module()(*given)[0]
    torch.testing.assert_close(hidden, wanted, atol=2e-5, rtol=0.0)


@pytest.mark.campaign
@pytest.mark.parametrize("name", some(list(FAMILIES), 8))
def test_onnx_graphs_are_the_model(name: str, tmp_path: Path) -> None:
    """Split by both, run in step; test_family_builds has some of them in every run."""
    model, served = FAMILIES[name].make(), config(name, tmp_path)
    inputs, wanted = asked(FAMILIES[name], model)
    files = [tmp_path / f"rank{rank}.onnx" for rank in range(4)]
    with quiet():
        for each, file in zip(traced(model, served, 2, 2, onnx=True), files, strict=True):
            save_onnx(each, file)
    found, _ = Lockstep(files, 2).forward(inputs)
    assert abs(found["HIDDEN_STATES"] - wanted.numpy()).max() < 2e-5
