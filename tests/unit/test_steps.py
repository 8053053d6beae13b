"""Requests that share a call share no fault, in any of the Python models that are shipped."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
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
    arguments,
    load_model,
    load_step,
)

SECRET = "/srv/model_repository/secret"
FAULTS = ValueError(SECRET), MemoryError(), RecursionError(), StopIteration()
STEPS = Path(answering.__file__).parent
REPEATED = REPOSITORY / "classify_labels" / "1" / "settings.json"
LABELS = ["O", "B-PER", "I-PER"]
RGB = {"size": [8, 8], "resample": 2, "crop": None, "scale": 1 / 255, "mean": None, "std": None}
Request = dict[str, np.ndarray[Any, Any]]


def column(*cells: bytes) -> np.ndarray[Any, Any]:
    return np.array([[cell] for cell in cells], np.object_)


def normal(number: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).standard_normal(shape).astype(np.float32)


def picture(number: int) -> Request:
    images = list(GOOD.values())
    return {"IMAGE": column(images[number % len(images)])}


def tagged(number: int) -> Request:
    offsets = np.array([[[-1, -1], [0, 2], [3, 4], [5, 8]]], np.int32)
    return {"LOGITS": normal(number, 1, 4, 3), "OFFSETS": offsets}


@dataclass(frozen=True)
class Case:
    """A Python model.

    Attributes:
        request: one of several, by number.
        inside: what a call of `execute` goes through, of the module or the model.
        step: which of python_mp.steps it is; none for one with a model.py of its own.
        tensors: names of inputs and outputs.
    """

    request: Callable[[int], Request]
    inside: tuple[str, ...]
    step: str = ""
    settings: Mapping[str, Any] | None = None
    tensors: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def load(self, name: str, patch: pytest.MonkeyPatch) -> ModuleType:
        return load_step(self.step, patch) if self.step else load_model(name, patch)

    def config(self) -> str:
        given, made = (
            [{"name": name, "data_type": "TYPE_FP32"} for name in names] for names in self.tensors
        )
        return json.dumps({"input": given, "output": made})


CASES = {
    "embed_tokenizer": Case(
        lambda number: {
            "TEXT": column(b"the " * number, b"a"),
            **({"PROMPT": column(b"q", b"")} if number % 2 else {}),
        },
        ("text_input.decode", "pack", "model.tokenizer", "model._prompts", "model._sink"),
        "tokenizer",
        {"prompts": {"q": "the "}},
        tensors=(("TEXT",), ("INPUT_IDS", "LENGTHS")),
    ),
    "perhaps pairs": Case(
        lambda number: {
            "TEXT": column(b"a b"),
            **({"TEXT_PAIR": column(b"the " * number)} if number % 2 else {}),
        },
        ("text_input.decode", "pack", "model.tokenizer"),
        "tokenizer",
        tensors=(("TEXT", "TEXT_PAIR"), ("INPUT_IDS", "TOKEN_TYPE_IDS", "LENGTHS")),
    ),
    "pairs": Case(
        lambda number: {"QUERY": column(b"a b"), "TEXT": column(b"the " * number)},
        ("text_input.decode", "pack", "model.tokenizer"),
        "tokenizer",
        tensors=(("QUERY", "TEXT"), ("INPUT_IDS", "TOKEN_TYPE_IDS", "LENGTHS")),
    ),
    "offsets": Case(
        lambda number: {"TEXT": column(b"the " * number)},
        ("text_input.decode", "pack", "model.tokenizer"),
        "tokenizer",
        {"unknown": 1},
        tensors=(("TEXT",), ("INPUT_IDS", "OFFSETS", "CONTINUES", "LENGTHS")),
    ),
    "chat_prompt": Case(
        lambda number: (
            {"TEXT": column(b"the " * number)}
            if number % 2
            else {"MESSAGES": column(b'[{"role": "user", "content": "a b"}]')}
        ),
        ("text_input.decode", "conversation.read", "model.tokenizer", "model._template"),
        "prompt",
        {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"},
    ),
    "chat_text": Case(
        lambda number: {
            "OUTPUT_IDS": np.arange(5, 5 + number, dtype=np.int32)[None],
            "CONTEXT_IDS": np.arange(number - 1, dtype=np.int32)[None],
            "FINISH_REASON": column(b"stop" * (number % 2)),
            "TRIM": np.full((1, 1), number % 3, np.int32),
        },
        ("model.parts",),
        "text",
    ),
    "embed_vectors": Case(
        lambda number: {
            "SENTENCE_EMBEDDING": normal(number, 2, 8),
            **({"DIMENSIONS": np.full((2, 1), number, np.int32)} if number % 2 else {}),
        },
        ("dimensions", "model._form"),
        "vectors",
        tensors=((), ("EMBEDDING",)),
    ),
    "scores": Case(
        lambda number: {"LOGITS": normal(number, 2, 1)},
        ("model.activation",),
        "scores",
        {"activation": "sigmoid"},
    ),
    "classify_labels": Case(
        lambda number: {"LOGITS": normal(number, 1, 10)},
        ("the_k", "best", "model.activation"),
        "labels",
        json.loads(REPEATED.read_text()),
    ),
    "spans": Case(tagged, ("spans",), "spans", {"labels": LABELS}),
    "images": Case(picture, ("pictures.read", "model.processor"), "images", RGB),
    "classify_decoder": Case(picture, ("decode", "_pixels")),
}


class Panic(BaseException):
    """As Rust's extensions raise."""


def test_these_are_all_python_models() -> None:
    configs = REPOSITORY.glob("*/config.pbtxt")
    python = {each.parent.name for each in configs if 'backend: "python"' in each.read_text()}
    assert python <= CASES.keys()
    steps = {each.stem for each in STEPS.glob("*.py") if "TritonPythonModel" in each.read_text()}
    assert steps - {"__init__"} == {case.step for case in CASES.values() if case.step}


def served(case: Case, module: ModuleType, folder: Path) -> Any:
    """The model, initialised if it has anything to read."""
    model = module.TritonPythonModel()
    (version := folder / "1").mkdir(exist_ok=True)
    word_piece().save(str(version / "tokenizer.json"))
    (version / "settings.json").write_text(json.dumps(case.settings or {}))
    if hasattr(model, "initialize"):
        model.initialize(arguments(case.config(), folder, "m"))
    return model


def outputs(response: Any) -> dict[str, list[Any]]:
    assert response.error is None, response.error
    return {name: array.tolist() for name, array in response.outputs.items()}


def inside(case: Case, module: ModuleType, model: Any) -> list[tuple[Any, str]]:
    """Everything that a call of `execute` goes through: a fault can be put into each."""
    found = []
    for path in case.inside:
        owner, _, name = path.rpartition(".")
        found.append(
            (model if owner == "model" else attrgetter(owner)(module), name)
            if owner
            else (module, path)
        )
    return [*found, (module.pb_utils, "Tensor")]


class Failing:
    """Stands for a function, or an object with functions; some calls raise."""

    def __init__(self, real: Any, raises: Callable[[Any], bool], fault: BaseException) -> None:
        self._real, self._raises, self._fault = real, raises, fault

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self._raises(arguments):
            raise self._fault
        return self._real(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return Failing(getattr(self._real, name), self._raises, self._fault)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_fault_hits_no_other_request(name: str, data: st.DataObject, tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.MonkeyPatch.context() as patch:
        module = case.load(name, patch)
        model = served(case, module, tmp_path)
        requests = [InferenceRequest(**case.request(number)) for number in range(1, 8)]
        alone = [outputs(model.execute([each])[0]) for each in requests]
        owner, part = data.draw(st.sampled_from(inside(case, module, model)))
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
            expected = str(response.error).endswith(answering.UNEXPECTED)
            assert (response.error.code == TritonError.INTERNAL) == expected
    assert failed <= len(bad)
