"""embed_tokenizer: what it refuses, what it packs, and that one bad request fails alone."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.support.triton_stub import InferenceRequest, TritonError, load_model


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_model("embed_tokenizer", monkeypatch)


@pytest.fixture
def model(module: ModuleType, tmp_path: Path) -> object:
    """With a vocabulary of three words, cut at 4 tokens."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2, "c": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(4)
    (tmp_path / "1").mkdir()
    tokenizer.save(str(tmp_path / "1" / "tokenizer.json"))
    model = module.TritonPythonModel()
    model.initialize({"model_repository": str(tmp_path), "model_version": "1"})
    return model


def request(*texts: bytes) -> InferenceRequest:
    return InferenceRequest(TEXT=np.array([[text] for text in texts], np.object_))


def test_decodes_up_to_the_limit(module: ModuleType) -> None:
    texts = ["x" * module.MAX_BYTES, "\u00e9\0 \U0001f600"]
    assert module.decode([text.encode() for text in texts]) == texts


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "TEXT[1] is empty."),
        (b"x" * 65537, "TEXT[1] has 65537 bytes; the limit is 65536."),
        (b"abc\xff", "TEXT[1] is not UTF-8 at byte 3."),
        (b"\xed\xa0\x80", "TEXT[1] is not UTF-8 at byte 0."),  # a surrogate
    ],
)
def test_refuses_and_names_the_index(module: ModuleType, text: bytes, sentence: str) -> None:
    with pytest.raises(module.TextError) as error:
        module.decode([b"good", text])
    assert str(error.value) == sentence


def test_answers_requests_in_order_without_padding_between_them(model: object) -> None:
    first, second = model.execute([request(b"a b", b"c"), request(b"c b a b a")])
    np.testing.assert_array_equal(first.outputs["INPUT_IDS"], [[1, 2], [3, 0]])
    np.testing.assert_array_equal(first.outputs["LENGTHS"], [[2], [1]])
    assert first.outputs["INPUT_IDS"].dtype == first.outputs["LENGTHS"].dtype == np.int32
    np.testing.assert_array_equal(second.outputs["INPUT_IDS"], [[3, 2, 1, 2]])


def test_a_bad_request_fails_alone(model: object) -> None:
    good, bad, also_good = model.execute([request(b"a"), request(b"b", b""), request(b"c")])
    assert bad.error.code == TritonError.INVALID_ARG
    assert str(bad.error) == "TEXT[1] is empty."
    np.testing.assert_array_equal(good.outputs["INPUT_IDS"], [[1]])
    np.testing.assert_array_equal(also_good.outputs["INPUT_IDS"], [[3]])
