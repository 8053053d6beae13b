"""The step `labels`: the best first. How many: tests/triton/test_classify.py."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.triton_stub import InferenceRequest, arguments, load_step

LABELS = [f"l {n}" for n in range(10)]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_step("labels", monkeypatch)


def model(module: ModuleType, folder: Path, activation: str, **parameters: str) -> Any:
    (folder / "1").mkdir(exist_ok=True)
    said = {"labels": LABELS, "activation": activation}
    (folder / "1" / "settings.json").write_text(json.dumps(said))
    config = {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}
    made = module.TritonPythonModel()
    made.initialize(arguments(json.dumps(config), folder, "labels"))
    return made


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
def test_the_best_first_with_their_scores(
    module: ModuleType, tmp_path: Path, activation: str
) -> None:
    logits = np.random.default_rng(0).standard_normal((4, 10), np.float32) * 5
    request = InferenceRequest(LOGITS=logits, TOP_K=np.full((4, 1), 10, np.int32))
    (response,) = model(module, tmp_path, activation).execute([request])
    labels, scores = response.outputs["LABEL"], response.outputs["SCORE"]
    assert labels.dtype == np.object_
    assert scores.dtype == np.float32
    values = logits.astype(np.float64)
    exponentials = np.exp(values)
    wanted = {
        "softmax": exponentials / exponentials.sum(1, keepdims=True),
        "sigmoid": 1 / (1 + np.exp(-values)),
        "identity": values,
    }[activation]
    for row, names, each in zip(wanted, labels, scores, strict=True):
        np.testing.assert_allclose(each, np.sort(row)[::-1], rtol=1e-5)
        assert [LABELS.index(name.decode()) for name in names] == np.argsort(-row).tolist()


def test_as_many_as_config_says(module: ModuleType, tmp_path: Path) -> None:
    request = InferenceRequest(LOGITS=np.zeros((1, 10), np.float32))
    for said, many in (({}, 5), ({"top_k": "2"}, 2)):
        (response,) = model(module, tmp_path, "softmax", **said).execute([request])
        assert response.outputs["LABEL"].shape == (1, many)


def test_large_logits_stay_finite(module: ModuleType) -> None:
    large = np.array([[1e38, -1e38, 0, 1e38]], np.float32)
    np.testing.assert_array_equal(module.best(large, 4), [[0, 3, 2, 1]])
    np.testing.assert_array_equal(module.activations.softmax(large), [[0.5, 0, 0, 0.5]])
    np.testing.assert_array_equal(module.activations.sigmoid(large), [[1, 0, 0.5, 1]])
