"""classify_labels: softmax, the best first. How many: tests/triton/test_classify.py."""

import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.triton_stub import InferenceRequest, load_model

LABELS = [f"l{n}" for n in range(10)]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_model("classify_labels", monkeypatch)


@pytest.fixture
def model(module: ModuleType) -> Any:
    parameters = {"labels": {"string_value": " ".join(LABELS)}, "top_k": {"string_value": "3"}}
    model = module.TritonPythonModel()
    model.initialize({"model_config": json.dumps({"parameters": parameters})})
    return model


def test_the_best_first_with_their_probabilities(model: Any) -> None:
    logits = np.random.default_rng(0).standard_normal((4, 10), np.float32) * 5
    top_k = np.full((4, 1), 10, np.int32)
    (response,) = model.execute([InferenceRequest(LOGITS=logits, TOP_K=top_k)])
    labels, scores = response.outputs["LABEL"], response.outputs["SCORE"]
    assert labels.dtype == np.object_
    assert scores.dtype == np.float32
    exponentials = np.exp(logits.astype(np.float64))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    for row, names, each in zip(probabilities, labels, scores, strict=True):
        np.testing.assert_allclose(each, np.sort(row)[::-1], rtol=1e-5)
        assert [LABELS.index(name.decode()) for name in names] == np.argsort(-row).tolist()


def test_large_logits_stay_finite(module: ModuleType) -> None:
    indices, scores = module.best(np.array([[1e38, -1e38, 0, 1e38]], np.float32), 4)
    np.testing.assert_array_equal(indices, [[0, 3, 2, 1]])
    np.testing.assert_array_equal(scores, [[0.5, 0.5, 0, 0]])
