"""The classifier's module, split in every way, against the same in one piece and float64."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from build_scripts import digits
from python_mp.config import ModelConfig
from python_mp.errors import InvalidInput
from tests.support.harness import FP32, Array, model_config, served, tensor

LIMIT = 60.0
HEADS, EPSILON = 4, 1e-6


def weights() -> dict[str, Tensor]:
    """Random ones, biases and norms too."""
    random = torch.Generator().manual_seed(1)
    return {
        name: first + 0.1 * torch.randn(first.shape, generator=random)
        for name, first in digits.initial(random)
    }


def config(folder: Path, **more: Any) -> ModelConfig:
    return model_config(
        folder,
        [tensor("PIXELS", FP32, 8, 8)],
        [tensor("LOGITS", FP32, 10)],
        engine="torch",
        **more,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    version = tmp_path_factory.mktemp("classifier") / "1"
    version.mkdir()
    shutil.copy(digits.CLASSIFIER / "module.py", version)
    save_file(weights(), version / "model.safetensors")
    return version.parent


def plain(images: Array) -> Array:
    """PIXELS [n, 8, 8] to LOGITS [n, 10], token by token where the module has one product."""
    w = {name: value.double() for name, value in weights().items()}

    def affine(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (digits.DIM,), w[f"{name}.weight"], w[f"{name}.bias"], EPSILON)

    pixels = torch.from_numpy(images).double()
    corners = [(row, column) for row in range(0, 8, 2) for column in range(0, 8, 2)]
    patches = [pixels[:, r : r + 2, c : c + 2].flatten(1) for r, c in corners]
    x = affine(torch.stack(patches, 1), "patch") + w["positions"]
    for index in range(digits.BLOCKS):
        block = f"blocks.{index}"
        y = norm(x, f"{block}.attention_norm")
        q, k, v = (affine(y, f"{block}.{name}").chunk(HEADS, -1) for name in "qkv")
        heads = [
            (q[h] @ k[h].mT / (digits.DIM // HEADS) ** 0.5).softmax(-1) @ v[h] for h in range(HEADS)
        ]
        x = x + affine(torch.cat(heads, -1), f"{block}.out")
        x = x + affine(F.gelu(affine(norm(x, f"{block}.mlp_norm"), f"{block}.up")), f"{block}.down")
    logits: Array = affine(norm(x, "norm").mean(1), "head").numpy()
    return logits


@pytest.mark.parametrize(
    ("tp", "pp", "dtype", "tolerance"),
    [
        *((tp, 1, "float32", 2e-5) for tp in (1, 2, 4)),
        *((1, pp, "float32", 2e-5) for pp in (2, 3, 4)),
        (2, 2, "float32", 2e-5),
        (2, 2, "bfloat16", 1e-1),
    ],
)
def test_agrees_with_plain_torch(
    folder: Path, tmp_path: Path, tp: int, pp: int, dtype: str, tolerance: float
) -> None:
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    random = np.random.default_rng(0)
    batches = [random.random((n, 8, 8), np.float32) for n in (1, 5, 64, 2)]
    with served(config(folder, dtype=dtype, **sizes), tmp_path) as replica:
        futures = replica.ask_all([{"PIXELS": images} for images in batches])
        for images, future in zip(batches, futures, strict=True):
            logits = future.result(LIMIT)["LOGITS"]
            assert logits.shape == (len(images), 10)
            np.testing.assert_allclose(logits, plain(images), rtol=0, atol=tolerance)


def test_what_is_not_finite_is_refused(folder: Path, tmp_path: Path) -> None:
    good = np.zeros((1, 8, 8), np.float32)
    with served(config(folder, tensor_parallel_size=2), tmp_path) as replica:
        for value in (np.nan, np.inf):
            bad = good.copy()
            bad[0, 7, 7] = value
            with pytest.raises(InvalidInput, match="PIXELS holds a value that is not finite"):
                replica.ask(PIXELS=bad).result(LIMIT)
        assert replica.ask(PIXELS=good).result(LIMIT)["LOGITS"].shape == (1, 10)
        assert replica.metrics()["python_mp_restarts_total"] == 0


class Whole(torch.nn.Module):
    """The module in one piece, with tensors in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.module = digits.build(digits.Leaves(weights()))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.module({"PIXELS": pixels}, None)["LOGITS"]


def test_can_be_exported_for_any_number_of_images() -> None:
    """One graph for every batch, as compiled engines need it."""
    dynamic = ({0: torch.export.Dim("n", min=1, max=64)},)
    with torch.no_grad():
        exported = torch.export.export(Whole(), (torch.rand(2, 8, 8),), dynamic_shapes=dynamic)
        for size in (1, 5, 64):
            images = torch.rand(size, 8, 8)
            logits = exported.module()(images).numpy()
            np.testing.assert_allclose(logits, plain(images.numpy()), rtol=0, atol=2e-5)
