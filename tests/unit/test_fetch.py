"""Sources: found, whole, and refused in one sentence where they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from rich.progress import Progress
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from build_scripts import fetch, job, ranker, stages
from build_scripts.checkpoint import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.job import Job
from tests.support.checkpoints import CONFIG, FOLDER, shapes, tiny_bert, write_json

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


def test_the_package_of_the_repository_is_whole() -> None:
    Checkpoint.packaged().model()


def test_a_package_that_is_not_installed_is_said(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="package no-such-package is not installed; run `make in"):
        stages.plan(make_job(tmp_path, "package:no_such_package"))


def test_a_tokenizer_is_cut_and_not_padded(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(make_job(tmp_path, checkpoint, "tokenizer"), monkeypatch, stage="tokenizer")
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert tokenizer.padding is None
    assert tokenizer.truncation["max_length"] == 16


def shard_weights(checkpoint: Path) -> tuple[Path, Path]:
    """The weights in two files with an index, as big checkpoints are."""
    named = list(shapes(CONFIG).items())
    (checkpoint / "model.safetensors").unlink()
    names = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    halves = dict(named[:9]), dict(named[9:])
    for name, half in zip(names, halves, strict=True):
        save_weights(checkpoint / name, half)
    weight_map = {t: n for n, half in zip(names, halves, strict=True) for t in half}
    write_json(
        checkpoint / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map}
    )
    return checkpoint / names[0], checkpoint / names[1]


def test_weights_in_several_files_are_read(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = shard_weights(checkpoint)
    made = make_job(tmp_path, checkpoint)
    run(made, monkeypatch)
    assert {first.name, second.name, "model.safetensors.index.json"} < fetch.read(made).files.keys()


def test_names_may_start_with_the_architecture(checkpoint: Path) -> None:
    named = {f"bert.{name}": shape for name, shape in shapes(CONFIG).items()}
    save_weights(checkpoint / "model.safetensors", named)
    Checkpoint(checkpoint).model()


def break_architecture(checkpoint: Path) -> None:
    write_json(checkpoint / "config.json", CONFIG | {"model_type": "t5"})


def break_activation(checkpoint: Path) -> None:
    write_json(checkpoint / "config.json", CONFIG | {"hidden_act": "relu"})


def break_pooling(checkpoint: Path) -> None:
    write_json(checkpoint / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": False})


def lose_tensor(checkpoint: Path) -> None:
    named = shapes(CONFIG)
    del named["encoder.layer.1.output.dense.bias"]
    save_weights(checkpoint / "model.safetensors", named)


def widen_tensor(checkpoint: Path) -> None:
    save_weights(checkpoint / "model.safetensors", shapes(CONFIG | {"vocab_size": 5}))


def widen_all(checkpoint: Path) -> None:
    wide = CONFIG | {"hidden_size": 16}
    write_json(checkpoint / "config.json", wide)
    save_weights(checkpoint / "model.safetensors", shapes(wide))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def truncate_weights(checkpoint: Path) -> None:
    truncate(checkpoint / "model.safetensors")


def truncate_shard(checkpoint: Path) -> None:
    truncate(shard_weights(checkpoint)[1])


def lose_shard(checkpoint: Path) -> None:
    shard_weights(checkpoint)[1].unlink()


def empty_shard(checkpoint: Path) -> None:
    save_weights(shard_weights(checkpoint)[1], {"other": (1,)})


def leave_the_folder(checkpoint: Path) -> None:
    shard_weights(checkpoint)
    index = {"weight_map": {"a": "../config.json"}}
    write_json(checkpoint / "model.safetensors.index.json", index)


def keep_only_pickle(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")


def lose_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()


def lose_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()


def break_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (break_architecture, "model_type 't5'; the encoder family supports 'bert'"),
        (break_activation, "hidden_act 'relu'; the encoder family supports 'gelu'"),
        (break_pooling, "mean"),
        (lose_tensor, "lacks the tensor encoder.layer.1.output.dense.bias"),
        (widen_tensor, "has the shape [5, 8], config.json asks for [38, 8]"),
        (widen_all, "dims: [ -1, 16 ]"),
        (truncate_weights, "model.safetensors cannot be read"),
        (truncate_shard, "model-00002-of-00002.safetensors cannot be read"),
        (lose_shard, "has no model-00002-of-00002.safetensors, which model.safetensors.index.json"),
        (empty_shard, "model-00002-of-00002.safetensors lacks the tensor"),
        (leave_the_folder, "has no ../config.json"),
        (keep_only_pickle, "pytorch_model.bin: pickle can run code; convert it to safetensors"),
        (lose_weights, "has no model.safetensors"),
        (lose_config, "has no config.json"),
        (break_json, "config.json is not valid JSON"),
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


def test_a_tokenizer_that_is_missing_is_said(tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(BuildError, match=r"has no tokenizer\.json"):
        stages.plan(make_job(tmp_path, checkpoint, "tokenizer"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("no/such/folder", "there is no folder .*no/such/folder; a source is package:NAME, a fol"),
        ("make:no_such.module", "make:no_such.module names no Python module"),
    ],
)
def test_a_source_that_is_not_there_is_said(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        stages.plan(make_job(tmp_path, source, "module"))


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


def test_a_hub_that_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\nmore of it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        BuildError, match=f"^hub:owner/name@{COMMIT} cannot be downloaded: no route$"
    ):
        run(make_job(tmp_path, f"hub:owner/name@{COMMIT}"), monkeypatch)


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", "@0123abc", f"@{'A' * 40}"])
def test_what_may_change_on_the_hub_is_refused_with_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    def model_info(repository: str, *, revision: str | None) -> Any:
        assert (repository, revision) == ("owner/name", asked)
        return SimpleNamespace(sha=COMMIT)

    asked = revision.removeprefix("@") or None
    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    with pytest.raises(BuildError, match=f"write hub:owner/name@{COMMIT}, which it is now"):
        stages.plan(make_job(tmp_path, f"hub:owner/name{revision}"))


def test_a_hub_that_does_not_say_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model_info(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    with pytest.raises(BuildError, match="its 40 digits .*: no route"):
        stages.plan(make_job(tmp_path, "hub:owner/name"))


def test_what_is_made_comes_with_its_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_job(tmp_path, "make:build_scripts.ranker", "module")
    out = run(made, monkeypatch)
    source = fetch.read(made)
    assert source.facts == {"trained": False, "seed": 0}
    weights = load_file(out / "checkpoint" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in weights.items()} == dict(ranker.shapes())


def test_ranker_is_the_same_from_the_same_seed(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        ranker.make(tmp_path / name, Progress(disable=True))
        contents.append((tmp_path / name / "model.safetensors").read_bytes())
    assert contents[0] == contents[1]
    requests, labels = ranker.samples(tmp_path)
    assert labels is None
    assert {request["FEATURES"].shape for request in requests} == {(1, ranker.DIM)}


def test_ranker_keeps_activations_sane() -> None:
    weights = dict(ranker.tensors())
    x = np.random.default_rng(0).standard_normal((64, ranker.DIM), dtype=np.float32)
    for index in range(ranker.BLOCKS):
        block = f"blocks.{index}"
        normed = x / np.sqrt((x * x).mean(1, keepdims=True)) * weights[f"{block}.norm.weight"]
        gate = normed @ weights[f"{block}.gate.weight"].T
        gated = gate / (1 + np.exp(-gate)) * (normed @ weights[f"{block}.up.weight"].T)
        x = x + gated @ weights[f"{block}.down.weight"].T
        assert 0.5 < x.std() < 3
    assert 0.3 < (x @ weights["head.weight"].T).std() < 3
