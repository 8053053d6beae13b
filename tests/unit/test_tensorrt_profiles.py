"""Shapes of plans, and config.pbtxt for Triton's own backend."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from build_scripts.errors import BuildError
from build_scripts.tensorrt import tritonconfig
from build_scripts.tensorrt.profiles import Shape, profiles
from python_mp.sharding.bins import fill

Dims = Sequence[str | int]
FLOAT = TensorProto.FLOAT
RAGGED: dict[str, Dims] = {
    "hidden": ("tokens", 8),
    "gather": ("rows", "width"),
    "segments": ("rows", "width"),
    "scatter": ("tokens",),
}


def graph(inputs: dict[str, Dims], outputs: dict[str, Dims], ranks: int = 1) -> ModelProto:
    """Of no nodes, but for a collective where there are several ranks."""
    ends = [
        [helper.make_tensor_value_info(name, FLOAT, dims) for name, dims in each.items()]
        for each in (inputs, outputs)
    ]
    node = helper.make_node("DistCollective", ["a"], ["b"], domain="python_mp", nb_rank=ranks)
    return helper.make_model(helper.make_graph([node] if ranks > 1 else [], "g", *ends))


def test_one_profile_without_sequences() -> None:
    [profile] = profiles(graph({"pixels": ("n", 8, 8), "scale": ("n",)}, {}), (1, 16, 64))
    assert profile == {
        "pixels": Shape((1, 8, 8), (16, 8, 8), (64, 8, 8)),
        "scale": Shape((1,), (16,), (64,)),
    }


def test_a_profile_for_each_range_of_widths() -> None:
    narrow, middle, wide = profiles(graph(RAGGED, {}), (1, 512, 4096), longest=512)
    assert narrow["gather"] == narrow["segments"] == Shape((1, 1), (16, 32), (4096, 32))
    assert middle["gather"] == Shape((1, 33), (4, 128), (249, 128))
    assert wide["gather"] == Shape((1, 129), (1, 512), (64, 512))
    for profile in (narrow, middle, wide):
        assert profile["hidden"] == Shape((1, 8), (512, 8), (4096, 8))
        assert profile["scatter"] == Shape((1,), (512,), (4096,))
    [short] = profiles(graph(RAGGED, {}), (1, 8, 64), longest=20)
    assert short["gather"].max == (64, 20)


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_every_batch_has_a_profile(lengths: list[int]) -> None:
    most = sum(lengths)
    gather, _, scatter = fill(lengths)
    each = [profile["gather"] for profile in profiles(graph(RAGGED, {}), (1, 1, most))]
    low, high = np.array([one.min for one in each]), np.array([one.max for one in each])
    assert ((low <= gather.shape) & (gather.shape <= high)).all(1).sum() == 1
    assert scatter.size <= most


def test_dimensions_that_no_recipe_bounds_are_refused() -> None:
    for dims in (("n", "m"), (4, 8), ()):
        with pytest.raises(BuildError, match="Input 'x' must be open in its first dimension and"):
            profiles(graph({"x": dims}, {}), (1, 2, 4))


def parsed(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def test_config_for_one_gpu() -> None:
    model = graph({"PIXELS": ("n", 8, 8)}, {"LOGITS": ("n", 10), "BEST": ("n",)})
    config = parsed(tritonconfig.config(model, max_batch_size=64, gpus=[1]))
    assert (config.backend, config.max_batch_size) == ("tensorrt", 64)
    tensors = [*config.input, *config.output]
    assert [list(each.dims) for each in tensors] == [[8, 8], [10], [1]]
    assert {each.data_type for each in tensors} == {DataType.TYPE_FP32}
    assert tensors[2].HasField("reshape")
    [group] = config.instance_group
    assert (group.kind, list(group.gpus)) == (ModelInstanceGroup.KIND_GPU, [1])
    assert not config.parameters


def test_config_for_several_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rank0.onnx"
    onnx.save(graph({"X": ("n", 4)}, {"Y": ("n", 4)}, ranks=2), file)
    assert tritonconfig.main([str(file), "--max-batch-size", "4", "--gpus", "2,3"]) == 0
    config = parsed(capsys.readouterr().out)
    [group] = config.instance_group
    assert (config.max_batch_size, group.kind, group.count) == (4, ModelInstanceGroup.KIND_MODEL, 1)
    said = {key: value.string_value for key, value in config.parameters.items()}
    assert said.pop("multi_device_gpus") == "2,3"
    assert said == dict.fromkeys(("enable_multi_device", "multi_device_per_rank_engines"), "true")
    assert tritonconfig.main([str(file), "--max-batch-size", "4"]) == 1
    assert "of 2 ranks: name 2 GPUs, not 1" in capsys.readouterr().err


def test_what_it_cannot_serve() -> None:
    stage: dict[str, Dims] = {"hidden_out": ("n", 8)}
    for model in (graph(RAGGED, {}), graph({"X": ("n", 4)}, stage)):
        with pytest.raises(BuildError, match="neither pipelines nor sequences"):
            tritonconfig.config(model, max_batch_size=1)
