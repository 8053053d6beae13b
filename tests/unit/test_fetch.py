"""Sources: found, whole, and refused in one sentence where they are not."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from rich.progress import Progress
from safetensors.numpy import save_file

from build_scripts import fetch, job, stages
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.job import REPOSITORY, Job
from python_mp.sharding.checkpoint import INDEX, WEIGHTS
from tests.support.checkpoints import CONFIG, FOLDER, HALVES, split, tensors, tiny_bert, write_json
from tests.support.examples import ranker

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PBTXT = """
max_batch_size: 8
input [ { name: "INPUT_IDS" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true } ]
output [ { name: "HIDDEN_STATES" data_type: TYPE_FP32 dims: [ -1, 8 ] } ]
parameters { key: "engine" value { string_value: "torch" } }
"""
GATE = """
[shapes]
tokens = [1, 2, 8]
[accuracy]
cosine_min = 0.9
"""


class Bench:
    """A model whose source is fetched, and a checkpoint."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.checkpoint = folder, tiny_bert(folder / "checkpoint")
        self._patch = patch

    def job(self, source: object, family: str = "transformers") -> Job:
        folder = self.folder / "repository" / "m"
        folder.mkdir(parents=True, exist_ok=True)
        text = f'family = "{family}"\nsource = "{source}"\n'
        (folder / "recipe.toml").write_text(text + (GATE if family != "tokenizer" else ""))
        (folder / "config.pbtxt").write_text(PBTXT)
        for name in ("module.py", "model.py"):
            (folder / name).write_text("")
        return job.load("m", folder.parent, workspace=self.folder / "workspace")

    def run(self, made: Job, stage: str = "fetch") -> Path:
        self._patch.setattr(stages, "ORDER", ("fetch",))
        steps = stages.plan(made)
        stages.ensure(made, steps, stage, Progress(disable=True))
        return steps[stage].folder


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_folder_is_recorded_and_not_copied(bench: Bench) -> None:
    made = bench.job(bench.checkpoint)
    out = bench.run(made)
    assert sorted(path.name for path in out.iterdir()) == ["source.json", "stage.json"]
    source = fetch.read(made)
    assert (source.folder, source.id) == (bench.checkpoint, str(bench.checkpoint))
    assert source.files.keys() == {*FOLDER, "model.safetensors", "tokenizer.json"}
    assert len(source.sha256) == 64
    write_json(bench.checkpoint / "config.json", CONFIG | {"note": 1})
    other = bench.job(bench.checkpoint)
    assert bench.run(other) != out
    assert fetch.read(other).sha256 != source.sha256


def test_a_tokenizer_is_cut_and_not_padded(bench: Bench) -> None:
    out = bench.run(bench.job(bench.checkpoint, "tokenizer"), stage="step")
    made = json.loads((out / "tokenizer.json").read_text())
    assert (made["padding"], made["truncation"]["max_length"]) == (None, 16)


def test_the_hub_gives_nothing_that_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    commit = bench.folder / "hub" / "snapshots" / COMMIT
    commit.mkdir(parents=True)
    for path in bench.checkpoint.iterdir():
        (commit / path.name).symlink_to(path)  # as its cache does

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    made = bench.job(f"hub:owner/name@{COMMIT}")
    out = bench.run(made)
    assert (asked["repository"], asked["revision"]) == ("owner/name", COMMIT)
    assert not {"*", "*.bin", "*.py", "*.pt"} & set(asked["allow_patterns"])
    source = fetch.read(made)
    assert source.id == f"hub:owner/name@{COMMIT}"
    assert source.folder == out / "checkpoint"
    Checkpoint(source.folder).model()


@pytest.mark.parametrize("revision", ["", "@main", f"@{'A' * 40}"])
def test_what_may_change(bench: Bench, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    def model_info(repository: str, *, revision: str | None) -> Any:
        assert (repository, revision) == ("owner/name", asked)
        return SimpleNamespace(sha=COMMIT)

    asked = revision.removeprefix("@") or None
    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    with pytest.raises(BuildError, match=f"write hub:owner/name@{COMMIT}, which it is now"):
        stages.plan(bench.job(f"hub:owner/name{revision}"))


def test_what_is_made_comes_with_its_facts(bench: Bench) -> None:
    made = bench.job("make:seeded.py", "module")
    shutil.copy(REPOSITORY / "ranker" / "seeded.py", made.home)
    out = bench.run(made)
    source = fetch.read(made)
    assert source.facts == {"trained": False, "seed": 0}
    weights = (out / "checkpoint" / WEIGHTS).read_bytes()
    ranker.make(bench.folder, Progress(disable=True))
    assert (bench.folder / WEIGHTS).read_bytes() == weights, "of the same seed"
    with (made.home / "seeded.py").open("a") as file:
        file.write("# changed\n")
    assert bench.run(replace(made)) != out


def in_two_files(checkpoint: Path) -> Path:
    (checkpoint / WEIGHTS).unlink()
    return split(checkpoint)


def test_weights_in_several_files_are_read(bench: Bench) -> None:
    in_two_files(bench.checkpoint)
    made = bench.job(bench.checkpoint)
    bench.run(made)
    assert {*HALVES, INDEX} < fetch.read(made).files.keys()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def leave_the_folder(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).unlink()
    write_json(checkpoint / INDEX, {"weight_map": {"a": "../config.json"}})
    write_json(checkpoint.parent / "config.json", {})


def widen_all(checkpoint: Path) -> None:
    wide = CONFIG | {"hidden_size": 16}
    write_json(checkpoint / "config.json", wide)
    save_file(tensors(wide), checkpoint / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (widen_all, "dims: [ -1, 16 ]"),
        (lambda c: cut_short(c / WEIGHTS), f"{WEIGHTS} cannot be read"),
        (lambda c: cut_short(in_two_files(c)), "two.safetensors cannot be read"),
        (lambda c: in_two_files(c).unlink(), f"has no two.safetensors, which {INDEX}"),
        (
            lambda c: save_file({"other": np.ones(1)}, in_two_files(c)),
            "two.safetensors lacks the",
        ),
        (leave_the_folder, "has no ../config.json"),
        (lambda c: (c / WEIGHTS).rename(c / "pytorch_model.bin"), "bin: pickle can run code; conv"),
        (lambda c: (c / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
        (lambda c: (c / "config.json").unlink(), "has no config.json"),
        (lambda c: (c / "config.json").write_text("{"), "config.json is not valid JSON"),
    ],
)
def test_a_bad_checkpoint_is_refused(bench: Bench, damage: Any, named: str) -> None:
    damage(bench.checkpoint)
    with pytest.raises(BuildError, match=re.escape(named)):
        bench.run(bench.job(bench.checkpoint))
    assert not list((bench.folder / "workspace").rglob("source.json"))


def test_a_missing_source_is_said(bench: Bench) -> None:
    (tiny_bert(bench.folder / "empty") / "tokenizer.json").unlink()
    for source, family, said in (
        ("no/such/folder", "module", "there is no folder .*no/such/folder; a source is package:NA"),
        ("make:weights.py", "module", "has no file weights.py, which make:weights.py names"),
        (
            "package:no_such_package",
            "transformers",
            "package no-such-package is not installed",
        ),
        (bench.folder / "empty", "tokenizer", r"has no tokenizer: neither tokenizer\.json nor"),
    ):
        with pytest.raises(BuildError, match=said):
            stages.plan(bench.job(source, family))


def test_a_hub_that_is_silent_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nmore of it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    monkeypatch.setattr(huggingface_hub, "model_info", fails)
    said = f"^hub:owner/name@{COMMIT} cannot be downloaded: no route$"
    with pytest.raises(BuildError, match=said):
        bench.run(bench.job(f"hub:owner/name@{COMMIT}"))
    with pytest.raises(BuildError, match="its 40 digits .*: no route"):
        stages.plan(bench.job("hub:owner/name"))
