"""A module of one's own: the ranker that ships, and what a load says when it cannot be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

from build_scripts import ranker
from build_scripts.job import REPOSITORY
from python_mp.config import ModelConfig
from python_mp.errors import InvalidInput, LoadError
from python_mp.rank import engines, source
from python_mp.rank.collectives.communicator import Alone
from python_mp.rank.shard import Shard
from tests.engines.conftest import encoder_config
from tests.support.harness import (
    FP32,
    Array,
    lone_rank,
    model_config,
    rank_processes,
    served,
    tensor,
)

LIMIT = 60.0


def ranker_config(folder: Path, **more: Any) -> ModelConfig:
    return model_config(
        folder,
        [tensor("FEATURES", FP32, ranker.DIM)],
        [tensor("SCORE", FP32, 1)],
        engine="torch",
        max_batch_size=256,
        **more,
    )


@pytest.fixture(scope="module")
def ranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    version = tmp_path_factory.mktemp("ranker") / "1"
    version.mkdir()
    shutil.copy(REPOSITORY / "ranker" / "module.py", version)
    save_file(dict(ranker.tensors()), version / "model.safetensors")
    return version.parent


def plain(features: Array) -> Array:
    """The ranker without any sharding, in float64."""
    w = {name: torch.from_numpy(a).double() for name, a in ranker.tensors()}
    x = torch.from_numpy(features).double()
    for n in range(ranker.BLOCKS):
        block = f"blocks.{n}"
        y = F.rms_norm(x, (ranker.DIM,), w[f"{block}.norm.weight"], 1e-6)
        gate, up = y @ w[f"{block}.gate.weight"].T, y @ w[f"{block}.up.weight"].T
        x = x + (F.silu(gate) * up) @ w[f"{block}.down.weight"].T
    x = F.rms_norm(x, (ranker.DIM,), w["norm.weight"], 1e-6)
    return (x @ w["head.weight"].T + w["head.bias"]).numpy()


@pytest.mark.parametrize(
    ("tp", "pp", "dtype", "tolerance"),
    [
        *((tp, pp, "float32", 2e-5) for pp in (1, 2) for tp in (1, 2, 4)),
        (2, 2, "bfloat16", 5e-2),
    ],
)
def test_the_ranker_agrees_with_plain_torch(
    ranker_folder: Path, tmp_path: Path, tp: int, pp: int, dtype: str, tolerance: float
) -> None:
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    random = np.random.default_rng(0)
    batches = [random.standard_normal((b, ranker.DIM), np.float32) for b in (1, 5, 256, 2)]
    with served(ranker_config(ranker_folder, dtype=dtype, **sizes), tmp_path) as replica:
        futures = replica.ask_all([{"FEATURES": features} for features in batches])
        for features, future in zip(batches, futures, strict=True):
            score = future.result(LIMIT)["SCORE"]
            assert score.shape == (len(features), 1)
            np.testing.assert_allclose(score, plain(features), rtol=0, atol=tolerance)
        with pytest.raises(InvalidInput, match="not finite"):
            replica.ask(FEATURES=np.full((1, ranker.DIM), np.nan, np.float32)).result(LIMIT)
        replica.ask(FEATURES=batches[0]).result(LIMIT)
        assert replica.metrics()["python_mp_restarts_total"] == 0
    unchanged = {path.name for path in (ranker_folder / "1").iterdir()}
    assert unchanged == {"module.py", "model.safetensors"}


BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 16,
    "max_position_embeddings": 8,
    "layer_norm_eps": 1e-12,
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The version folder of an encoder that loads; each test then breaks it."""
    version = tmp_path / "tiny" / "1"
    version.mkdir(parents=True)
    (version / "config.json").write_text(json.dumps(BERT))
    save_file(tiny_tensors(), version / "model.safetensors")
    engines.load(lone_rank(encoder_config(version.parent))).close()
    return version


def tiny_tensors() -> dict[str, Array]:
    square, wide, tall = (8, 8), (16, 8), (8, 16)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (16, 8),
        "embeddings.position_embeddings.weight": (8, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "embeddings.LayerNorm.weight": (8,),
        "embeddings.LayerNorm.bias": (8,),
    }
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for name, shape in {
            "attention.self.query": square,
            "attention.self.key": square,
            "attention.self.value": square,
            "attention.output.dense": square,
            "attention.output.LayerNorm": (8,),
            "intermediate.dense": wide,
            "output.dense": tall,
            "output.LayerNorm": (8,),
        }.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def no_weights(version: Path) -> None:
    (version / "model.safetensors").unlink()


def truncated(version: Path) -> None:
    path = version / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def no_safetensors(version: Path) -> None:
    (version / "model.safetensors").write_bytes(b"hello")


def missing_tensor(version: Path) -> None:
    tensors = tiny_tensors()
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, version / "model.safetensors")


def other_family(version: Path) -> None:
    (version / "config.json").write_text(json.dumps(BERT | {"model_type": "roberta"}))


def not_json(version: Path) -> None:
    (version / "config.json").write_text("{")


def module(text: str) -> Callable[[Path], None]:
    def write(version: Path) -> None:
        (version / "module.py").write_text(text)

    return write


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (no_weights, r"no \*\.safetensors in .*tiny/1"),
        (truncated, r"tiny/1/model\.safetensors is truncated"),
        (no_safetensors, r"tiny/1/model\.safetensors is truncated or no safetensors file"),
        (missing_tensor, r"no tensor 'encoder\.layer\.1\.output\.dense\.weight'"),
        (
            other_family,
            r"config\.json has model_type 'roberta'; the encoder family supports 'bert'",
        ),
        (not_json, r"config\.json"),
        (module("raise ValueError('boom')"), r"tiny/1/module\.py raised ValueError: boom"),
        (module("def build(:"), r"tiny/1/module\.py raised SyntaxError"),
        (module("built = 1"), r"tiny/1/module\.py has no function build\(shard\)"),
        (module("build = 1"), r"tiny/1/module\.py has no function build\(shard\)"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_loaded_is_named(
    tiny: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(tiny)
    with pytest.raises(LoadError, match=sentence):
        engines.load(lone_rank(encoder_config(tiny.parent)))


def shard(folder: Path, size: int = 1, stages: int = 1) -> Shard:
    return Shard(0, size, 0, stages, torch.float32, torch.device("cpu"), folder, {}, Alone())


def test_sizes_that_do_not_divide_the_model_are_named(tiny: Path) -> None:
    with pytest.raises(LoadError, match="tensor_parallel_size 4 does not divide the 2 attention"):
        source.read(tiny).build(shard(tiny, size=4))
    with pytest.raises(LoadError, match="pipeline_parallel_size 3 is more than the model's 2"):
        source.read(tiny).build(shard(tiny, stages=3))


@pytest.mark.parametrize(
    ("damage", "sizes", "sentence"),
    [
        (truncated, {"tensor_parallel_size": 2}, r"model\.safetensors is truncated"),
        (module("def build(shard):\n    if shard.rank: raise KeyError('w')\n    import torch\n"
                "    return shard.all_reduce(torch.ones(4))"),
         {"tensor_parallel_size": 2}, "KeyError: 'w'"),
        (lambda version: None, {"pipeline_parallel_size": 3}, "more than the model's 2 layers"),
    ],
    ids=["weights", "one rank of two while the other waits", "stages"],
)  # fmt: skip
def test_a_load_that_fails_leaves_no_process(
    tiny: Path, tmp_path: Path, damage: Callable[[Path], None], sizes: Any, sentence: str
) -> None:
    damage(tiny)
    with (
        pytest.raises(LoadError, match=sentence),
        served(encoder_config(tiny.parent, **sizes), tmp_path),
    ):
        pass
    assert rank_processes(os.getpid()) == {}


IN_PLACE = """
import torch
from torch import nn


def build(shard):
    return Halved(shard)


def check(batch):
    batch["X"].sub_(8)


class Halved(nn.Module):
    def __init__(self, shard):
        super().__init__()
        self.shard = shard

    def forward(self, batch, hidden):
        x = batch["X"].div_(2)
        batch.cu_seqlens.add_(1)
        return self.shard.all_reduce(x.clone()) if hidden is None else {"Y": hidden + x}
"""


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_ranks_that_work_in_place_do_not_spoil_each_others_inputs(tmp_path: Path, tp: int) -> None:
    """They read the same memory."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "module.py").write_text(IN_PLACE)
    x, y = tensor("X", FP32, -1, allow_ragged_batch=True), tensor("Y", FP32, -1)
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": 2}
    with served(model_config(tmp_path, [x], [y], engine="torch", **sizes), tmp_path) as replica:
        for first in range(0, 40, 8):
            asked = [np.arange(first, first + n, dtype=np.float32)[None] for n in range(1, 9)]
            futures = replica.ask_all([{"X": each} for each in asked])
            for each, future in zip(asked, futures, strict=True):
                expected = (each - 8) / 2 * (tp + 1)
                np.testing.assert_array_equal(future.result(LIMIT)["Y"], expected)
