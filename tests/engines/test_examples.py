"""The examples' modules, split over ranks, against the same in one piece and float64."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from build_scripts.job import REPOSITORY
from python_mp.model.errors import InvalidInput
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding import source
from python_mp.sharding.shard import Shard
from tests.support.configs import FP32, model_config, tensor
from tests.support.examples import digits, ranker
from tests.support.replicas import LIMIT, Array, served


def random_weights() -> dict[str, Tensor]:
    """Of the classifier; biases and norms too."""
    random = torch.Generator().manual_seed(1)
    first = digits.initial(random).state_dict()
    return {name: w + 0.1 * torch.randn(w.shape, generator=random) for name, w in first.items()}


Example = tuple[str, str, tuple[int, ...], str, int, Callable[[], dict[str, Tensor]]]
"""Name, input and its shape, output and its width, weights."""
RANKER: Example = (
    *("ranker", "FEATURES", (ranker.DIM,), "SCORE", 1),
    lambda: {name: torch.from_numpy(array) for name, array in ranker.tensors()},
)
CLASSIFIER: Example = ("classifier", "PIXELS", (8, 8), "LOGITS", 10, random_weights)


def whole(version: Path, given: str, batch: Array, answer: str) -> Array:
    """What the module makes of it in one piece, in float64."""
    device = torch.device("cpu")
    names = {"inputs": (given,), "outputs": (answer,)}
    shard = Shard(0, 1, 0, 1, torch.float64, device, version, {}, Alone(), **names)
    x = {given: torch.from_numpy(batch).double()}
    found = source.read(version)
    with torch.no_grad():
        y: Array = (found.whole or found.build)(shard)(x, None)[answer].numpy()
    return y


# What differs: one module sums after each pair of linears, the other splits heads and stages too.
@pytest.mark.parametrize(
    ("example", "tp", "pp", "dtype", "tolerance"),
    [
        (RANKER, 4, 1, "float32", 2e-5),
        (RANKER, 2, 2, "bfloat16", 5e-2),
        (CLASSIFIER, 2, 1, "bfloat16", 1e-1),
        (CLASSIFIER, 1, 3, "float32", 2e-5),
        (CLASSIFIER, 4, 2, "float32", 2e-5),
    ],
)
def test_agrees_with_the_module_in_one_piece(
    tmp_path: Path, example: Example, tp: int, pp: int, dtype: str, tolerance: float
) -> None:
    (version := tmp_path / "1").mkdir()
    name, given, shape, answer, width, weights = example
    shutil.copy(REPOSITORY / name / "module.py", version)
    save_file(weights(), version / "model.safetensors")
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
            wanted = whole(version, given, batch, answer)
            np.testing.assert_allclose(future.result(LIMIT)[answer], wanted, 0, tolerance)
        assert replica.metrics()["python_mp_restarts_total"] == 0
    assert {path.name for path in version.iterdir()} == {"module.py", "model.safetensors"}
