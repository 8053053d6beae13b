"""embed_pooler: mean and norm of the real tokens only."""

from types import ModuleType

import numpy as np
import pytest

from tests.support.triton_stub import InferenceRequest, TritonError, load_model

WIDTH = 384


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_model("embed_pooler", monkeypatch)


def hidden_states(rng: np.random.Generator, lengths: list[int]) -> np.ndarray:
    """Random rows, NaN where nothing is real."""
    hidden = np.full((len(lengths), max(lengths), WIDTH), np.nan, np.float32)
    for row, length in zip(hidden, lengths, strict=True):
        row[:length] = rng.standard_normal((length, WIDTH), dtype=np.float32) + 0.1
    return hidden


def reference(row: np.ndarray) -> np.ndarray:
    mean = row.astype(np.float64).mean(axis=0)
    return mean / np.linalg.norm(mean)


def request(hidden: np.ndarray, lengths: list[int]) -> InferenceRequest:
    return InferenceRequest(
        HIDDEN_STATES=hidden, LENGTHS=np.array([[length] for length in lengths], np.int32)
    )


def test_a_row_of_zeros_stays_finite(module: ModuleType) -> None:
    assert not module.pool([np.zeros((3, WIDTH), np.float32)]).any()


def test_requests_of_unequal_length_share_a_call(module: ModuleType) -> None:
    rng = np.random.default_rng(1)
    lengths = [[3], [5, 2, 256], [1]]
    hidden = [hidden_states(rng, one) for one in lengths]
    requests = [request(states, one) for states, one in zip(hidden, lengths, strict=True)]
    responses = module.TritonPythonModel().execute(requests)
    for response, states, one in zip(responses, hidden, lengths, strict=True):
        expected = [reference(row[:length]) for row, length in zip(states, one, strict=True)]
        np.testing.assert_allclose(response.outputs["EMBEDDING"], expected, atol=1e-6)
        assert response.outputs["EMBEDDING"].dtype == np.float32


@pytest.mark.parametrize("length", [0, -1, 5])
def test_a_length_that_does_not_fit_fails_alone(module: ModuleType, length: int) -> None:
    hidden = np.ones((2, 4, WIDTH), np.float32)
    bad, good = module.TritonPythonModel().execute(
        [request(hidden, [4, length]), request(hidden, [4, 2])]
    )
    assert bad.error.code == TritonError.INVALID_ARG
    assert str(bad.error) == f"LENGTHS[1] is {length}; the row has 4 tokens."
    assert good.outputs["EMBEDDING"].shape == (2, WIDTH)
