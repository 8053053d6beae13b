"""The step `vectors`: what clients get."""

import numpy as np
import pytest

from tests.support.triton_stub import InferenceRequest, load_step


def test_vectors_have_length_1(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_step("vectors", monkeypatch)
    random = np.random.default_rng(1)
    given = [random.standard_normal((rows, 384), np.float32) for rows in (1, 3, 2)]
    given[1][2] = 0
    requests = [InferenceRequest(SENTENCE_EMBEDDING=each) for each in given]
    for response, vectors in zip(module.TritonPythonModel().execute(requests), given, strict=True):
        found = response.outputs["EMBEDDING"]
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        np.testing.assert_allclose(found * lengths, vectors, atol=1e-6)
        assert found.dtype == np.float32
        assert (
            found[lengths.ravel() == 0].tolist()
            == np.zeros_like(found[lengths.ravel() == 0]).tolist()
        )
