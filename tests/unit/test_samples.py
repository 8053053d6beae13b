"""Samples: nothing is judged by what it was calibrated with, and models bring their own."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_scripts import fetch, samples, sentences
from build_scripts.errors import BuildError
from build_scripts.job import REPOSITORY, Job
from build_scripts.recipe import Accuracy, Calibration, Recipe, Shapes
from tests.support.builds import CONFIG
from tests.support.checkpoints import tiny_bert

OWN = """
import numpy as np
def samples(folder):
    return [{"X": np.full((1, 4), n, np.float32)} for n in range(%d)], list(range(%d))
"""
CALIBRATION = """
def calibration(folder):
    return [{"X": np.full((1, 4), n, np.float32)} for n in range(-3, 3)]
"""
REFERENCE = """
def reference(folder, requests):
    return [{"Y": request["X"] * 2} for request in requests]
"""
ENCODER = (REPOSITORY / "embed_encoder" / "config.pbtxt").read_text().replace("384", "8")


def made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, *, encoder: bool = False
) -> Job:
    """A job whose checkpoint is at hand."""
    (tmp_path / "config.pbtxt").write_text(ENCODER if encoder else CONFIG)
    (tmp_path / "module.py").write_text("def build(shard): ...\n")
    found = fetch.Source(tmp_path / "checkpoint", source, "", {}, {}, None)
    monkeypatch.setattr(fetch, "read", lambda _job: found)
    recipe = Recipe(
        family="transformers" if encoder else "module",
        source=source,
        shapes=Shapes(rows=(1, 2, 8)),
        accuracy=Accuracy(cosine_min=0.9, samples=200),
        calibration=Calibration(samples=64),
    )
    return Job("m", tmp_path, tmp_path, recipe)


def assert_disjoint(job: Job) -> None:
    ours, theirs = (
        {b"".join(array.tobytes() for array in each.values()) for each in requests}
        for requests in (samples.judged(job).requests, samples.calibration(job))
    )
    assert ours
    assert theirs
    assert ours.isdisjoint(theirs)


def text_file(tmp_path: Path) -> None:
    lines = ["the cab. " * (n % 7) + "abc"[n % 3] * (n // 3 + 1) for n in range(60)]
    (tmp_path / "texts.txt").write_text("\n".join([*lines, "", *lines]))


def text_hook(tmp_path: Path) -> None:
    (tmp_path / "samples.py").write_text(
        "def texts(folder): return ['a ' * n for n in range(1, 14)]"
    )


@pytest.mark.parametrize("bring", [lambda _: None, text_file, text_hook])
def test_other_texts_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bring: Any) -> None:
    tiny_bert(tmp_path / "checkpoint")
    bring(tmp_path)
    assert_disjoint(made(tmp_path, monkeypatch, "checkpoint", encoder=True))


def test_sentences_of_the_gate_are_in_no_text_to_calibrate_with() -> None:
    judged = sentences.sentences(200)
    others = sentences.others(judged, 64)
    assert (len({*judged}), len(others)) == (200, 64)
    known = {sentence for text in judged for sentence in sentences._split(text)}
    assert known.isdisjoint(each for text in others for each in sentences._split(text))
    assert max(len(text.split()) for text in others) > 150  # long ones, too


@pytest.mark.parametrize(("model", "file"), [("ranker", "seeded.py"), ("classifier", "digits.py")])
def test_weights_that_are_made_come_with_disjoint_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, file: str
) -> None:
    job = made(tmp_path, monkeypatch, f"make:{file}")
    for name in ("config.pbtxt", "module.py", file):
        shutil.copy(REPOSITORY / model / name, tmp_path)
    assert_disjoint(job)
    assert (len(samples.judged(job).requests), len(samples.calibration(job))) == (200, 64)


@pytest.mark.parametrize("code", ["", OWN % (40, 40), OWN % (4, 4), OWN % (300, 300) + CALIBRATION])
def test_other_samples_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (tmp_path / "samples.py").write_text(code)
    job = made(tmp_path, monkeypatch, "checkpoint")
    assert_disjoint(job)
    if code == OWN % (40, 40):  # labels stay with their samples
        judged = samples.judged(job)
        numbers = [int(request["X"][0, 0]) for request in judged.requests]
        assert numbers == judged.labels == [*range(30)]


def test_without_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for more in (OWN % (3, 3), OWN % (40, 40) + "def calibration(f): return samples(f)[0]"):
        (tmp_path / "samples.py").write_text(more)
        with pytest.raises(BuildError, match="no samples to calibrate with that it is not judged"):
            samples.calibration(made(tmp_path, monkeypatch, "checkpoint"))


def test_what_lies_beside_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = made(tmp_path, monkeypatch, "checkpoint")
    keys = {str(job.samples)}
    for name, text in (("samples.py", OWN), ("samples.py", REFERENCE), ("labels.json", "[]")):
        (tmp_path / name).write_text(text)
        keys.add(str(job.samples))
    assert len(keys) == 4


def test_what_is_too_large_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bert(tmp_path / "checkpoint")
    text_hook(tmp_path)  # of 3 to 15 tokens
    job = made(tmp_path, monkeypatch, "checkpoint", encoder=True)
    every = samples.judged(job).requests
    limit(tmp_path, 6)
    few = samples.judged(replace(job)).requests
    assert [each["INPUT_IDS"].size for each in few] == [3, 4, 5, 6]
    assert len(every) > len(few)
    limit(tmp_path, 2)
    with pytest.raises(BuildError, match="each has 3 rows; max_batch_tokens is 2 in "):
        samples.judged(replace(job))


def limit(folder: Path, tokens: int) -> None:
    said = f'parameters {{ key: "max_batch_tokens" value {{ string_value: "{tokens}" }} }}'
    (folder / "config.pbtxt").write_text(f"{ENCODER}\n{said}")


def test_a_module_brings_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "samples.py").write_text(OWN % (40, 40) + REFERENCE)
    job = made(tmp_path, monkeypatch, "checkpoint")
    requests = samples.judged(job).requests
    outputs = samples.reference(job, requests)
    assert len(outputs) == 30
    np.testing.assert_array_equal(outputs[7]["Y"], np.full((1, 4), 14, np.float32))
    (tmp_path / "samples.py").write_text(OWN % (40, 40) + REFERENCE.replace('"Y"', '"Z"'))
    with pytest.raises(BuildError, match="must return, for each of the 30 requests, Y"):
        samples.reference(job, requests)
