"""Requests that share a call share no fault, in any of the Python models that are shipped."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from python_mp.steps import answering
from tests.support.checkpoints import word_piece
from tests.support.images import GOOD
from tests.support.triton_stub import (
    REPOSITORY,
    InferenceRequest,
    TritonError,
    load_model,
    load_step,
)

SECRET = "/srv/model_repository/secret"
FAULTS = ValueError(SECRET), MemoryError(), RecursionError(), StopIteration()
STEPS = {"embed_tokenizer": "tokenizer", "embed_vectors": "vectors"}
MODELS = (*STEPS, "classify_decoder", "classify_labels")


class Panic(BaseException):
    """As Rust's extensions raise."""


def test_these_are_all_python_models() -> None:
    configs = REPOSITORY.glob("*/config.pbtxt")
    python = {each.parent.name for each in configs if 'backend: "python"' in each.read_text()}
    assert python == set(MODELS)


def request(name: str, number: int) -> InferenceRequest:
    if name == "embed_tokenizer":
        return InferenceRequest(TEXT=np.array([[b"the " * number], [b"a"]], np.object_))
    if name == "embed_vectors":
        vectors = np.random.default_rng(number).standard_normal((2, 8)).astype(np.float32)
        return InferenceRequest(SENTENCE_EMBEDDING=vectors)
    if name == "classify_decoder":
        images = list(GOOD.values())
        return InferenceRequest(IMAGE=np.array([[images[number % len(images)]]], np.object_))
    return InferenceRequest(LOGITS=np.eye(10, dtype=np.float32)[[number % 10]])


def served(name: str, module: ModuleType, tmp_path: Path) -> Any:
    model = module.TritonPythonModel()
    if name == "embed_tokenizer":
        (tmp_path / "m" / "1").mkdir(parents=True, exist_ok=True)
        word_piece().save(str(tmp_path / "m" / "1" / "tokenizer.json"))
        model.initialize({"model_repository": str(tmp_path / "m"), "model_version": "1"})
    if name == "classify_labels":
        said = {"labels": "0 1 2 3 4 5 6 7 8 9", "top_k": "3"}
        parameters = {name: {"string_value": value} for name, value in said.items()}
        model.initialize({"model_config": json.dumps({"parameters": parameters})})
    return model


def outputs(response: Any) -> dict[str, list[Any]]:
    assert response.error is None, response.error
    return {name: array.tolist() for name, array in response.outputs.items()}


def inside(name: str, module: ModuleType, model: Any) -> list[tuple[Any, str]]:
    """Everything that a call of `execute` goes through: a fault can be put into each."""
    found = {
        "embed_tokenizer": [(module, "decode"), (module, "pack"), (model, "tokenizer")],
        "embed_vectors": [(module, "unit")],
        "classify_decoder": [(module, "decode"), (module, "_pixels")],
        "classify_labels": [(module, "the_k"), (module, "best")],
    }
    return [*found[name], (module.pb_utils, "Tensor")]


class Failing:
    """Stands for a function, or an object with functions; some calls raise."""

    def __init__(self, real: Any, raises: Callable[[Any], bool], fault: BaseException) -> None:
        self._real, self._raises, self._fault = real, raises, fault

    def __call__(self, *arguments: Any) -> Any:
        if self._raises(arguments):
            raise self._fault
        return self._real(*arguments)

    def __getattr__(self, name: str) -> Any:
        return Failing(getattr(self._real, name), self._raises, self._fault)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_fault_hits_no_other_request(name: str, data: st.DataObject, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        module = load_step(STEPS[name], patch) if name in STEPS else load_model(name, patch)
        model = served(name, module, tmp_path)
        requests = [request(name, number) for number in range(1, 8)]
        alone = [outputs(model.execute([each])[0]) for each in requests]
        owner, part = data.draw(st.sampled_from(inside(name, module, model)))
        fault = data.draw(st.sampled_from([*FAULTS, Panic()]))
        calls, bad = iter(range(10_000)), data.draw(st.sets(st.integers(0, 12), max_size=5))
        patch.setattr(
            owner, part, Failing(getattr(owner, part), lambda _: next(calls) in bad, fault)
        )
        responses = model.execute(requests)
    failed = 0
    for response, expected in zip(responses, alone, strict=True):
        if response.error is None:
            assert outputs(response) == expected
        else:
            failed += 1
            assert "/srv" not in str(response.error)
            expected = str(response.error) == answering.UNEXPECTED
            assert (response.error.code == TritonError.INTERNAL) == expected
    assert failed <= len(bad)
