"""Sources: found, whole, and refused in one sentence where they are not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from rich.progress import Progress
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from build_scripts import fetch, job, stages
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.job import REPOSITORY, Job
from tests.support.checkpoints import CONFIG, FOLDER, shapes, tiny_bert, write_json
from tests.support.examples import ranker

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PBTXT = """
max_batch_size: 8
input [ { name: "INPUT_IDS" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true } ]
output [ { name: "HIDDEN_STATES" data_type: TYPE_FP32 dims: [ -1, 8 ] } ]
parameters { key: "engine" value { string_value: "torch" } }
"""
RECIPE = """
family = "{family}"
source = "{source}"
"""
GATE = """
[shapes]
tokens = [1, 2, 8]
[accuracy]
cosine_min = 0.9
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_bert(tmp_path / "checkpoint")


def save_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, path)


def make_job(tmp_path: Path, source: object, family: str = "encoder") -> Job:
    folder = tmp_path / "repository" / "m"
    folder.mkdir(parents=True, exist_ok=True)
    text = RECIPE.format(family=family, source=source)
    (folder / "recipe.toml").write_text(text + (GATE if family != "tokenizer" else ""))
    (folder / "config.pbtxt").write_text(PBTXT)
    for name in ("module.py", "model.py"):
        (folder / name).write_text("")
    return job.load("m", folder.parent, workspace=tmp_path / "workspace")


def run(made: Job, monkeypatch: pytest.MonkeyPatch, *, stage: str = "fetch") -> Path:
    monkeypatch.setattr(stages, "ORDER", ("fetch",))
    steps = stages.plan(made)
    stages.ensure(made, steps, stage, Progress(disable=True))
    return steps[stage].folder


def test_a_folder_is_recorded_and_not_copied(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_job(tmp_path, checkpoint)
    out = run(made, monkeypatch)
    assert sorted(path.name for path in out.iterdir()) == ["source.json", "stage.json"]
    source = fetch.read(made)
    assert (source.folder, source.id) == (checkpoint, str(checkpoint))
    assert source.files.keys() == {*FOLDER, "model.safetensors", "tokenizer.json"}
    assert len(source.sha256) == 64
    write_json(checkpoint / "config.json", CONFIG | {"note": 1})
    other = make_job(tmp_path, checkpoint)
    assert run(other, monkeypatch) != out
    assert fetch.read(other).sha256 != source.sha256


def test_a_tokenizer_is_cut_and_not_padded(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(make_job(tmp_path, checkpoint, "tokenizer"), monkeypatch, stage="tokenizer")
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert tokenizer.padding is None
    assert tokenizer.truncation["max_length"] == 16


def test_the_hub_is_asked_for_nothing_that_runs(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    commit = tmp_path / "hub" / "snapshots" / COMMIT
    commit.mkdir(parents=True)
    for path in checkpoint.iterdir():
        (commit / path.name).symlink_to(path)  # as its cache does

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    made = make_job(tmp_path, f"hub:owner/name@{COMMIT}")
    out = run(made, monkeypatch)
    assert (asked["repository"], asked["revision"]) == ("owner/name", COMMIT)
    assert not {"*", "*.bin", "*.py", "*.pt"} & set(asked["allow_patterns"])
    source = fetch.read(made)
    assert source.id == f"hub:owner/name@{COMMIT}"
    assert source.folder == out / "checkpoint"
    Checkpoint(source.folder).model()


@pytest.mark.parametrize("revision", ["", "@main", "@0123abc", f"@{'A' * 40}"])
def test_what_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    def model_info(repository: str, *, revision: str | None) -> Any:
        assert (repository, revision) == ("owner/name", asked)
        return SimpleNamespace(sha=COMMIT)

    asked = revision.removeprefix("@") or None
    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    with pytest.raises(BuildError, match=f"write hub:owner/name@{COMMIT}, which it is now"):
        stages.plan(make_job(tmp_path, f"hub:owner/name{revision}"))


def test_what_is_made_comes_with_its_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_job(tmp_path, "make:seeded.py", "module")
    shutil.copy(REPOSITORY / "ranker" / "seeded.py", made.home)
    out = run(made, monkeypatch)
    source = fetch.read(made)
    assert source.facts == {"trained": False, "seed": 0}
    weights = load_file(out / "checkpoint" / "model.safetensors")
    ranker.make(tmp_path, Progress(disable=True))
    again = (tmp_path / "model.safetensors").read_bytes()
    assert again == (out / "checkpoint" / "model.safetensors").read_bytes(), "of the same seed"
    assert {name: tensor.shape for name, tensor in weights.items()} == dict(ranker.shapes())
    with (made.home / "seeded.py").open("a") as file:
        file.write("# changed\n")
    assert run(replace(made), monkeypatch) != out


SHARDS = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def in_two_files(checkpoint: Path) -> Path:
    """The weights with an index, as big checkpoints are; the second file."""
    named = list(shapes(CONFIG).items())
    (checkpoint / WEIGHTS).unlink()
    halves = dict(named[:9]), dict(named[9:])
    for name, half in zip(SHARDS, halves, strict=True):
        save_weights(checkpoint / name, half)
    weight_map = {t: n for n, half in zip(SHARDS, halves, strict=True) for t in half}
    write_json(checkpoint / INDEX, {"metadata": {}, "weight_map": weight_map})
    return checkpoint / SHARDS[1]


def test_weights_in_several_files_are_read(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_two_files(checkpoint)
    made = make_job(tmp_path, checkpoint)
    run(made, monkeypatch)
    assert {*SHARDS, INDEX} < fetch.read(made).files.keys()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def leave_the_folder(checkpoint: Path) -> None:
    in_two_files(checkpoint)
    write_json(checkpoint / INDEX, {"weight_map": {"a": "../config.json"}})


def widen_all(checkpoint: Path) -> None:
    wide = CONFIG | {"hidden_size": 16}
    write_json(checkpoint / "config.json", wide)
    save_weights(checkpoint / WEIGHTS, shapes(wide))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (widen_all, "dims: [ -1, 16 ]"),
        (lambda c: cut_short(c / WEIGHTS), f"{WEIGHTS} cannot be read"),
        (lambda c: cut_short(in_two_files(c)), f"{SHARDS[1]} cannot be read"),
        (lambda c: in_two_files(c).unlink(), f"has no {SHARDS[1]}, which {INDEX}"),
        (lambda c: save_weights(in_two_files(c), {"other": (1,)}), f"{SHARDS[1]} lacks the tensor"),
        (leave_the_folder, "has no ../config.json"),
        (
            lambda c: (c / WEIGHTS).rename(c / "pytorch_model.bin"),
            "pytorch_model.bin: pickle can run code; convert it to safetensors",
        ),
        (lambda c: (c / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
        (lambda c: (c / "config.json").unlink(), "has no config.json"),
        (lambda c: (c / "config.json").write_text("{"), "config.json is not valid JSON"),
    ],
)
def test_a_bad_checkpoint_is_refused_in_a_sentence(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    named: str,
) -> None:
    damage(checkpoint)
    with pytest.raises(BuildError) as raised:
        run(make_job(tmp_path, checkpoint), monkeypatch)
    assert named in str(raised.value)
    assert not list((tmp_path / "workspace").rglob("source.json"))


@pytest.mark.parametrize(
    ("source", "family", "said"),
    [
        ("no/such/folder", "module", "there is no folder .*no/such/folder; a source is package:NA"),
        ("make:weights.py", "module", "has no file weights.py, which make:weights.py names"),
        ("make:build_scripts.digits", "module", "has no file build_scripts.digits, which"),
        ("package:no_such_package", "encoder", "package no-such-package is not installed; run `m"),
        ("empty", "tokenizer", r"has no tokenizer\.json"),
    ],
)
def test_a_missing_source_is_said(tmp_path: Path, source: str, family: str, said: str) -> None:
    (tiny_bert(tmp_path / "empty") / "tokenizer.json").unlink()
    source = source.replace("empty", str(tmp_path / "empty"))
    with pytest.raises(BuildError, match=said):
        stages.plan(make_job(tmp_path, source, family))


def test_a_hub_that_is_silent_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nmore of it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    monkeypatch.setattr(huggingface_hub, "model_info", fails)
    said = f"^hub:owner/name@{COMMIT} cannot be downloaded: no route$"
    with pytest.raises(BuildError, match=said):
        run(make_job(tmp_path, f"hub:owner/name@{COMMIT}"), monkeypatch)
    with pytest.raises(BuildError, match="its 40 digits .*: no route"):
        stages.plan(make_job(tmp_path, "hub:owner/name"))
