"""Artifacts: built once, rebuilt when stale, never seen half, refused in one sentence."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from build_scripts import all as build_all
from build_scripts import ranker
from build_scripts.artifact import Artifact
from build_scripts.checkpoint import encoder_shapes
from build_scripts.manifest import Manifest

CONFIG = {
    "model_type": "bert",
    "hidden_size": 8,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 3,
}
ALL = ["embed_encoder/1", "embed_tokenizer/1", "ranker/1"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny checkpoint, whose tokenizer pads as the real one does."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 16})
    save_weights(folder, dict(encoder_shapes(CONFIG)))
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "embed").mkdir(parents=True)
    (folder / "embed" / "config.pbtxt").write_text(
        'output [ { name: "EMBEDDING" data_type: TYPE_FP32 dims: [ 8 ] } ]'
    )
    return folder


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))


def save_weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")


def build(repository: Path, checkpoint: Path, check: bool = False) -> list[str]:
    return build_all.build(repository, checkpoint, check=check)


def test_builds_what_is_missing_and_then_nothing(repository: Path, checkpoint: Path) -> None:
    assert build(repository, checkpoint) == ALL
    assert build(repository, checkpoint) == []
    assert build(repository, checkpoint, check=True) == []
    encoder = repository / "embed_encoder" / "1"
    for name in ("config.json", "model.safetensors"):
        assert (encoder / name).read_bytes() == (checkpoint / name).read_bytes()
    tokenizer = Tokenizer.from_file(str(repository / "embed_tokenizer" / "1" / "tokenizer.json"))
    assert tokenizer.padding is None
    assert tokenizer.truncation["max_length"] == 16
    assert [path.name for path in encoder.parent.iterdir()] == ["1"]


def test_keeps_files_that_are_not_built(repository: Path, checkpoint: Path) -> None:
    module = repository / "ranker" / "1" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text("mine")
    build(repository, checkpoint)
    assert module.read_text() == "mine"


def test_manifest_describes_the_files(repository: Path, checkpoint: Path) -> None:
    build(repository, checkpoint)
    manifest = Manifest.read(repository / "embed_encoder" / "1")
    assert manifest is not None
    assert manifest.files.keys() == {"config.json", "model.safetensors"}
    assert manifest.files == manifest.sources
    assert len(manifest.files["config.json"].sha256) == 64


def test_rebuilds_a_lost_or_shortened_file(repository: Path, checkpoint: Path) -> None:
    build(repository, checkpoint)
    (repository / "embed_tokenizer" / "1" / "tokenizer.json").unlink()
    (repository / "ranker" / "1" / "model.safetensors").write_bytes(b"short")
    assert build(repository, checkpoint) == ["embed_tokenizer/1", "ranker/1"]


def test_rebuilds_an_edited_file_of_the_same_size(repository: Path, checkpoint: Path) -> None:
    build(repository, checkpoint)
    flip_first_byte(repository / "ranker" / "1" / "model.safetensors")
    assert build(repository, checkpoint) == ["ranker/1"]


def test_check_finds_a_change_that_the_clock_hides(repository: Path, checkpoint: Path) -> None:
    build(repository, checkpoint)
    weights = repository / "ranker" / "1" / "model.safetensors"
    before = weights.stat()
    flip_first_byte(weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert build(repository, checkpoint) == []
    assert build(repository, checkpoint, check=True) == ["ranker/1"]


def flip_first_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def test_a_touched_file_is_not_rebuilt(repository: Path, checkpoint: Path) -> None:
    build(repository, checkpoint)
    for file in repository.glob("*/1/*.safetensors"):
        os.utime(file, (2**32, 2**32))
    assert build(repository, checkpoint) == []


def test_a_change_of_the_checkpoint_is_followed(repository: Path, checkpoint: Path) -> None:
    build(repository, checkpoint)
    write_json(checkpoint / "sentence_bert_config.json", {"max_seq_length": 9})
    assert build(repository, checkpoint) == ["embed_tokenizer/1"]
    write_json(checkpoint / "config.json", CONFIG | {"hidden_act": "gelu"})
    assert build(repository, checkpoint) == ["embed_encoder/1"]


class Killed(BaseException):
    """Ends the build where nothing but the kernel cleans up."""


@pytest.mark.parametrize("survived", range(4))
def test_a_kill_leaves_the_old_files_or_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    def version(value: str) -> Artifact:
        def write(directory: Path, _progress: Progress) -> None:
            for name in ("a", "b"):
                (directory / name).write_text(value)

        return Artifact(tmp_path / "model" / "1", {"value": value}, {}, write)

    def content() -> list[str]:
        return [(tmp_path / "model" / "1" / name).read_text() for name in ("a", "b")]

    progress = Progress()
    version("old").ensure(progress)
    with monkeypatch.context() as patch:
        kill_after(survived, patch)
        with pytest.raises(Killed):
            version("new").ensure(progress)
    committed = survived > 0  # the first move commits
    if not committed:
        assert content() == ["old", "old"]
        assert version("old").is_current(check=True)
    assert version("new").ensure(progress) is not committed
    assert content() == ["new", "new"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["1"]


def kill_after(moves: int, patch: pytest.MonkeyPatch) -> None:
    """Let `moves` renames happen; at the next one the process ends, and nothing is removed."""
    left = iter(range(moves))
    for name in ("rename", "replace"):
        move = getattr(Path, name)

        def killing(path: Path, target: Path, move: Any = move) -> Path:
            if next(left, None) is None:
                raise Killed
            return Path(move(path, target))

        patch.setattr(Path, name, killing)
    patch.setattr("shutil.rmtree", lambda *_, **__: None)


def test_two_builds_at_once_build_once(tmp_path: Path) -> None:
    written, waiting = [], threading.Barrier(2)

    def write(directory: Path, _progress: Progress) -> None:
        written.append(directory)
        (directory / "a").write_text("a")

    def ensure() -> None:
        waiting.wait()
        Artifact(tmp_path / "model" / "1", {}, {}, write).ensure(Progress())

    threads = [threading.Thread(target=ensure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1


def break_architecture(checkpoint: Path) -> None:
    write_json(checkpoint / "config.json", CONFIG | {"model_type": "t5"})


def break_pooling(checkpoint: Path) -> None:
    (checkpoint / "1_Pooling").mkdir()
    write_json(checkpoint / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": False})


def lose_tensor(checkpoint: Path) -> None:
    shapes = dict(encoder_shapes(CONFIG))
    del shapes["encoder.layer.1.output.dense.bias"]
    save_weights(checkpoint, shapes)


def widen_tensor(checkpoint: Path) -> None:
    save_weights(checkpoint, dict(encoder_shapes(CONFIG | {"vocab_size": 5})))


def truncate_weights(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def widen_all(checkpoint: Path) -> None:
    write_json(checkpoint / "config.json", CONFIG | {"hidden_size": 16})
    save_weights(checkpoint, dict(encoder_shapes(CONFIG | {"hidden_size": 16})))


def lose_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()


def break_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (break_architecture, "'t5'"),
        (break_pooling, "mean"),
        (lose_tensor, "lacks the tensor encoder.layer.1.output.dense.bias"),
        (widen_tensor, "has the shape [5, 8], config.json asks for [3, 8]"),
        (truncate_weights, "model.safetensors cannot be read"),
        (widen_all, "dims: [ 16 ]"),
        (lose_tokenizer, "has no tokenizer.json"),
        (break_json, "config.json is not valid JSON"),
    ],
)
def test_a_bad_checkpoint_is_refused_in_a_sentence(
    repository: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Any,
    named: str,
) -> None:
    damage(checkpoint)
    arguments = ["--checkpoint", str(checkpoint), "--repository", str(repository)]
    assert build_all.main(arguments) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("build: ")
    assert named in said
    assert not (repository / "embed_encoder" / "1").exists()


def test_ranker_is_the_same_from_the_same_seed(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        ranker.artifact(tmp_path / name).ensure(Progress())
        contents.append((tmp_path / name / "ranker" / "1" / "model.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_ranker_keeps_activations_sane(tmp_path: Path) -> None:
    ranker.artifact(tmp_path).ensure(Progress())
    weights = load_file(tmp_path / "ranker" / "1" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in weights.items()} == dict(ranker.shapes())
    features = np.random.default_rng(0).standard_normal((64, ranker.DIM), dtype=np.float32)
    for x in hidden_layers(features, weights):
        assert 0.5 < x.std() < 3
    assert 0.3 < (x @ weights["head.weight"].T).std() < 3


def hidden_layers(x: np.ndarray, weights: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    for index in range(ranker.BLOCKS):
        block = f"blocks.{index}"
        normed = x / np.sqrt((x * x).mean(1, keepdims=True)) * weights[f"{block}.norm.weight"]
        gate = normed @ weights[f"{block}.gate.weight"].T
        gated = gate / (1 + np.exp(-gate)) * (normed @ weights[f"{block}.up.weight"].T)
        x = x + gated @ weights[f"{block}.down.weight"].T
        yield x
