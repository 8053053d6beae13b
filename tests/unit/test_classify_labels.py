"""classify_labels: softmax, the best first, and how many of them."""

import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.triton_stub import InferenceRequest, TritonError, load_model

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


def request(logits: np.ndarray, *top_k: int) -> InferenceRequest:
    more = {"TOP_K": np.array(top_k, np.int32)[:, None]} if top_k else {}
    return InferenceRequest(LOGITS=logits.astype(np.float32), **more)


def random_logits(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 10), np.float32) * 5


def test_the_best_first_with_their_probabilities(model: Any) -> None:
    logits = random_logits(4)
    (response,) = model.execute([request(logits, 10, 10, 10, 10)])
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


def test_each_request_has_a_k_of_its_own(model: Any) -> None:
    ks = ((1, 1), (), (7, 7, 7))
    requests = [request(random_logits(len(each) or 1), *each) for each in ks]
    shapes = [response.outputs["LABEL"].shape for response in model.execute(requests)]
    assert shapes == [(2, 1), (1, 3), (3, 7)]


@pytest.mark.parametrize("top_k", [[0], [11], [-1, -1], [2, 3]])
def test_a_bad_k_fails_alone(model: Any, top_k: list[int]) -> None:
    good = request(random_logits(1), 2)
    first, bad, last = model.execute([good, request(random_logits(len(top_k)), *top_k), good])
    assert bad.error.code == TritonError.INVALID_ARG
    assert str(bad.error).startswith(f"TOP_K is {top_k[0]}")
    assert first.outputs["SCORE"].shape == last.outputs["SCORE"].shape == (1, 2)
