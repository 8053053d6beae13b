"""The examples' own modules, split over ranks, against the same in one piece and float64."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from build_scripts import digits, ranker
from build_scripts.job import REPOSITORY
from python_mp.model.errors import InvalidInput
from tests.support.configs import FP32, model_config, tensor
from tests.support.replicas import LIMIT, Array, served

HEADS, EPSILON = 4, 1e-6


def affine(w: Mapping[str, Tensor], x: Tensor, name: str) -> Tensor:
    bias = w.get(f"{name}.bias")
    return x @ w[f"{name}.weight"].T + (0 if bias is None else bias)


def rank_items(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """FEATURES [n, DIM] to SCORE [n, 1]."""
    for n in range(ranker.BLOCKS):
        block = f"blocks.{n}"
        y = F.rms_norm(x, (ranker.DIM,), w[f"{block}.norm.weight"], EPSILON)
        gated = F.silu(affine(w, y, f"{block}.gate")) * affine(w, y, f"{block}.up")
        x = x + affine(w, gated, f"{block}.down")
    return affine(w, F.rms_norm(x, (ranker.DIM,), w["norm.weight"], EPSILON), "head")


def classify(w: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """PIXELS [n, 8, 8] to LOGITS [n, 10], head by head where the module has one product."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (digits.DIM,), w[f"{name}.weight"], w[f"{name}.bias"], EPSILON)

    corners = [(row, column) for row in range(0, 8, 2) for column in range(0, 8, 2)]
    patches = [pixels[:, r : r + 2, c : c + 2].flatten(1) for r, c in corners]
    x = affine(w, torch.stack(patches, 1), "patch") + w["positions"]
    for n in range(digits.BLOCKS):
        block = f"blocks.{n}"
        y = norm(x, f"{block}.attention_norm")
        q, k, v = (affine(w, y, f"{block}.{name}").chunk(HEADS, -1) for name in "qkv")
        scale = (digits.DIM // HEADS) ** 0.5
        heads = [(q[h] @ k[h].mT / scale).softmax(-1) @ v[h] for h in range(HEADS)]
        x = x + affine(w, torch.cat(heads, -1), f"{block}.out")
        wide = F.gelu(affine(w, norm(x, f"{block}.mlp_norm"), f"{block}.up"))
        x = x + affine(w, wide, f"{block}.down")
    return affine(w, norm(x, "norm").mean(1), "head")


def random_weights() -> dict[str, Tensor]:
    """Of the classifier; biases and norms too."""
    random = torch.Generator().manual_seed(1)
    return {
        name: first + 0.1 * torch.randn(first.shape, generator=random)
        for name, first in digits.initial(random)
    }


@dataclass(frozen=True)
class Example:
    name: str
    inputs: tuple[str, tuple[int, ...]]
    outputs: tuple[str, int]
    weights: Callable[[], dict[str, Tensor]]
    plain: Callable[[Mapping[str, Tensor], Tensor], Tensor]


RANKER = Example(
    *("ranker", ("FEATURES", (ranker.DIM,)), ("SCORE", 1)),
    *(lambda: {name: torch.from_numpy(a) for name, a in ranker.tensors()}, rank_items),
)
CLASSIFIER = Example(
    "classifier", ("PIXELS", (8, 8)), ("LOGITS", 10), random_weights, classify
)  # fmt: skip


# What differs: one module sums after each pair of linears, the other splits heads and stages too.
@pytest.mark.parametrize(
    ("example", "tp", "pp", "dtype", "tolerance"),
    [
        (RANKER, 4, 1, "float32", 2e-5),
        (RANKER, 2, 2, "bfloat16", 5e-2),
        (CLASSIFIER, 2, 1, "bfloat16", 1e-1),
        (CLASSIFIER, 1, 4, "float32", 2e-5),
        (CLASSIFIER, 4, 2, "float32", 2e-5),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_agrees_with_plain_torch(
    tmp_path: Path, example: Example, tp: int, pp: int, dtype: str, tolerance: float
) -> None:
    (version := tmp_path / "1").mkdir()
    shutil.copy(REPOSITORY / example.name / "module.py", version)
    save_file(example.weights(), version / "model.safetensors")
    (given, shape), (answer, width) = example.inputs, example.outputs
    sizes: dict[str, Any] = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    x, y = [tensor(given, FP32, *shape)], [tensor(answer, FP32, width)]
    config = model_config(tmp_path, x, y, engine="torch", dtype=dtype, **sizes)
    random = np.random.default_rng(0)
    batches = [random.standard_normal((n, *shape), np.float32) for n in (1, 5, 64, 2)]
    bad = np.full((1, *shape), 0, np.float32)
    bad.flat[-1] = np.nan
    with served(config, tmp_path) as replica:
        *good, refused = replica.ask_all([{given: each} for each in (*batches, bad)])
        with pytest.raises(InvalidInput, match=f"{given} holds a value that is not finite"):
            refused.result(LIMIT)
        for batch, future in zip(batches, good, strict=True):
            np.testing.assert_allclose(
                future.result(LIMIT)[answer], plain(example, batch), rtol=0, atol=tolerance
            )
        assert replica.metrics()["python_mp_restarts_total"] == 0
    assert {path.name for path in version.iterdir()} == {"module.py", "model.safetensors"}


def plain(example: Example, batch: Array) -> Array:
    weights = {name: value.double() for name, value in example.weights().items()}
    answer: Array = example.plain(weights, torch.from_numpy(batch).double()).numpy()
    return answer
