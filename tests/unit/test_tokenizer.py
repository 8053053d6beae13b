"""The step `tokenizer`: what it packs. What it refuses: tests/triton/test_bad_input.py."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.support.triton_stub import InferenceRequest, arguments, load_step


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_step("tokenizer", monkeypatch)


@pytest.fixture
def model(module: ModuleType, tmp_path: Path) -> object:
    """With a vocabulary of three words, cut at 4 tokens."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2, "c": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(4)
    (tmp_path / "1").mkdir()
    tokenizer.save(str(tmp_path / "1" / "tokenizer.json"))
    model = module.TritonPythonModel()
    config = {"input": [{"name": "TEXT"}], "output": [{"name": "INPUT_IDS"}]}
    model.initialize(arguments(json.dumps(config), tmp_path, "tokenizer"))
    return model


def request(*texts: bytes) -> InferenceRequest:
    return InferenceRequest(TEXT=np.array([[text] for text in texts], np.object_))


def test_decodes_up_to_the_limit(module: ModuleType) -> None:
    texts = ["x" * module.text_input.MAX_BYTES, "\u00e9\0 \U0001f600"]
    assert module.text_input.decode("TEXT", [text.encode() for text in texts]) == texts


def test_answers_requests_in_order_without_padding_between_them(model: object) -> None:
    first, second = model.execute([request(b"a b", b"c"), request(b"c b a b a")])
    np.testing.assert_array_equal(first.outputs["INPUT_IDS"], [[1, 2], [3, 0]])
    np.testing.assert_array_equal(first.outputs["LENGTHS"], [[2], [1]])
    assert first.outputs["INPUT_IDS"].dtype == first.outputs["LENGTHS"].dtype == np.int32
    np.testing.assert_array_equal(second.outputs["INPUT_IDS"], [[3, 2, 1, 2]])
