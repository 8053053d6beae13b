"""The step `vectors`: what clients get, against sentence-transformers' own functions."""

import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_scripts import fetch, job, ranges
from build_scripts.errors import BuildError
from build_scripts.new import __main__ as new
from tests.support.checkpoints import tiny_bert
from tests.support.triton_stub import InferenceRequest, arguments, load_step

WIDTH = 12
BITS = r"it makes EMBEDDING, .* dims: \[ 8 \], or \[ 1 \] of bits"
RANDOM = np.random.default_rng(1)
CALIBRATED = RANDOM.standard_normal((40, WIDTH)).astype(np.float32) * np.arange(WIDTH)
VECTORS = 1.3 * RANDOM.standard_normal((5, WIDTH)).astype(np.float32) * np.arange(WIDTH)
PRECISIONS = {"TYPE_FP32": "float32", "TYPE_INT8": "int8", "TYPE_UINT8": "ubinary"}


def model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data_type: str, usual: int | None = None
) -> Any:
    (folder / "1").mkdir()
    (folder / "1" / "settings.json").write_text(json.dumps({"truncate_dim": usual}))
    ranges.write(folder / "1", CALIBRATED)
    made = load_step("vectors", monkeypatch).TritonPythonModel()
    config = json.dumps({"output": [{"name": "EMBEDDING", "data_type": data_type}]})
    made.initialize(arguments(config, folder, "vectors_0"))
    return made


def request(*wanted: int) -> InferenceRequest:
    """One row for each."""
    given = {"DIMENSIONS": np.array(wanted, np.int32)[:, None]} if any(wanted) else {}
    return InferenceRequest(SENTENCE_EMBEDDING=VECTORS[: len(wanted)], **given)


@pytest.mark.parametrize("data_type", PRECISIONS)
@pytest.mark.parametrize("usual", [None, 7])
def test_formats_as_sentence_transformers_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_type: str, usual: int | None
) -> None:
    with warnings.catch_warnings(action="ignore"):
        from sentence_transformers.util import quantize_embeddings, truncate_embeddings

    step = model(tmp_path, monkeypatch, data_type, usual)
    asked = [(0, 0, 0), (8, 8), (3,), (WIDTH,)]
    for response, wanted in zip(
        step.execute([request(*each) for each in asked]), asked, strict=True
    ):
        width = wanted[0] or usual
        cut = truncate_embeddings(VECTORS[: len(wanted)], width)
        lowest_highest = np.stack([CALIBRATED.min(0), CALIBRATED.max(0)])[:, :width]
        expected = quantize_embeddings(cut, PRECISIONS[data_type], ranges=lowest_highest)
        found = response.outputs["EMBEDDING"]
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


@pytest.mark.parametrize("data_type", [*PRECISIONS, "TYPE_FP16"])
@pytest.mark.parametrize("dims", [1, 2, 8])
def test_the_build_compares_what_config_says(tmp_path: Path, data_type: str, dims: int) -> None:
    """Of a checkpoint of width 8, whose bits are one byte."""
    folder = tiny_bert(tmp_path / "folder")
    assert new.main(["m", str(folder), f"--repository={tmp_path}"]) == 0
    config = tmp_path / "m_vectors" / "config.pbtxt"
    before = '"EMBEDDING" data_type: TYPE_FP32 dims: [ 8 ]'
    assert before in config.read_text()
    after = f'"EMBEDDING" data_type: {data_type} dims: [ {dims} ]'
    config.write_text(config.read_text().replace(before, after))
    step = job.load("m_vectors", tmp_path)
    fits = {"TYPE_FP32": 8, "TYPE_INT8": 8, "TYPE_UINT8": 1}
    with nullcontext() if fits.get(data_type) == dims else pytest.raises(BuildError, match=BITS):
        fetch.verify(step, folder)


def test_dimensions_that_there_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal hits no other request."""
    step = model(tmp_path, monkeypatch, "TYPE_FP32")
    good, long, negative, mixed = step.execute(
        [request(3, 3), request(WIDTH + 1), request(-1), request(2, 3)]
    )
    assert good.outputs["EMBEDDING"].shape == (2, 3)
    assert str(long.error) == "DIMENSIONS is 13; it can be 1 to 12."
    assert str(negative.error) == "DIMENSIONS is -1; it can be 1 to 12."
    assert "must be the same for all texts of a request" in str(mixed.error)


@pytest.mark.parametrize(
    ("data_type", "said"),
    [
        ("TYPE_INT8", "made by ranges.json"),
        ("TYPE_FP16", "TYPE_FP16; there are TYPE_INT8, TYPE_FP"),
    ],
)
def test_a_format_that_cannot_be_made_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_type: str, said: str
) -> None:
    monkeypatch.setattr(ranges, "write", lambda *_: None)
    with pytest.raises(RuntimeError, match=said):
        model(tmp_path, monkeypatch, data_type)
