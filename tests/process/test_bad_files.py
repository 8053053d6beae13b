"""A model whose files are wrong or whose code misbehaves is refused in a sentence, in time, and
leaves no process; the next good load works."""

import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from python_mp.model.admission import admit
from python_mp.model.config import ModelConfig
from python_mp.model.errors import LoadError
from python_mp.model.manifest import FORMAT, sha256, tensors
from python_mp.model.manifest import NAME as MANIFEST
from python_mp.rank import engines
from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding import source
from python_mp.sharding.shard import Shard
from tests.process import bad_files
from tests.process.bad_files import CONFIGS, FIELDS, GOOD, MODULES, SAFETENSORS, SHAPES
from tests.support import checkpoints
from tests.support.configs import FP32, INT32, model_config, tensor
from tests.support.processes import children, rank_processes, until
from tests.support.replicas import LIMIT, lone_rank, served

pytestmark = pytest.mark.usefixtures("one_forkserver")

Damage = Callable[[Path], object]
WEIGHTS = {"w": np.array([2, 3], np.float32)}


def times_config(version: Path, **more: Any) -> ModelConfig:
    more |= {"start_timeout_seconds": bad_files.START_SECONDS, "engine": "torch"}
    return model_config(version.parent, [tensor("X", FP32, 2)], [tensor("Y", FP32, 2)], **more)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version directory that loads; each test then breaks it."""
    folder = tmp_path / "repository" / "times" / "1"
    folder.mkdir(parents=True)
    (folder / "module.py").write_text(GOOD)
    save_file(WEIGHTS, folder / "model.safetensors")
    return folder


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A run's folder; at the end nothing lives that was started for the model."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    before = grandchildren()  # of a server that several tests share
    yield folder
    until(lambda: grandchildren() <= before, 5.0)


def grandchildren() -> set[int]:
    return {pid for each in children(os.getpid()) for pid in children(each)}


def load(config: ModelConfig, runtime: Path) -> None:
    """As Triton's entry does, and ends it."""
    admit(config)
    with served(config, runtime):
        pass


def load_engine(config: ModelConfig) -> None:
    engines.load(lone_rank(config)).close()


def assert_refused(sentence: str, load: Callable[..., None], *arguments: Any) -> str:
    """Loading fails with a sentence like this one, which is returned, in time."""
    began = time.monotonic()
    with pytest.raises(LoadError) as refused:
        load(*arguments)
    assert time.monotonic() - began < LIMIT
    text = str(refused.value)
    assert re.search(sentence, text), text
    assert "\n" not in text, text
    assert len(text) < 600, text
    return text


# -- what a version directory may not hold -------------------------------------------------------


def link_out(path: Path) -> None:
    outside = path.parents[3] / f"outside-{path.name}"
    (path.parents[3] / f"kept-{path.name}").rename(outside)
    path.symlink_to(outside)


NO_FILES: dict[str, Damage] = {
    "fifo": os.mkfifo,
    "link out": link_out,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["module.py", "model.safetensors", MANIFEST])
def test_what_is_no_file_of_the_model(version: Path, runtime: Path, name: str, kind: str) -> None:
    path = version / name
    if name == MANIFEST:
        path.write_text(json.dumps(manifest(version)))
    path.rename(path.parents[3] / f"kept-{name}")
    NO_FILES[kind](path)
    assert_refused(re.escape(name), load, times_config(version), runtime)


# -- manifest.json -------------------------------------------------------------------------------


def manifest(version: Path) -> dict[str, Any]:
    """One that fits; writes the weights of its only rank."""
    path = version / "rank0.safetensors"
    save_file(WEIGHTS, path, {"shapes": json.dumps({"w": [2]})})
    config = times_config(version)
    empty = ("source", "versions", "options", "recipe", "accuracy", "latency")
    return {
        **{key: {} for key in empty},
        "artifact": "a",
        "model": "times",
        "family": "module",
        "built": "",
        "format": FORMAT,
        "engine": "torch",
        "dtype": "float32",
        "layout": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1},
        "inputs": tensors(config.inputs),
        "outputs": tensors(config.outputs),
        "hardware": {"machine": platform.machine(), "cpu_features": [], "gpu": None},
        "files": {path.name: {"size": path.stat().st_size, "sha256": sha256(path)}},
    }


@pytest.mark.parametrize("fields", FIELDS, ids=json.dumps)
def test_a_manifest_with_nonsense(version: Path, fields: dict[str, Any]) -> None:
    (version / MANIFEST).write_text(json.dumps(manifest(version) | fields))
    assert_refused("times/1", admit, times_config(version))


# -- weights and a checkpoint's config.json ------------------------------------------------------


@pytest.mark.parametrize("title", SAFETENSORS)
def test_safetensors_that_lie(version: Path, title: str) -> None:
    (version / "model.safetensors").write_bytes(SAFETENSORS[title])
    assert_refused("safetensors", load_engine, times_config(version))


@pytest.mark.parametrize("metadata", SHAPES)
def test_slices_without_their_shapes(version: Path, metadata: dict[str, str] | None) -> None:
    save_file(WEIGHTS, version / "rank0.safetensors", metadata)
    assert_refused(r"rank0\.safetensors", load_engine, times_config(version))


@pytest.fixture
def bert(version: Path) -> Path:
    """The version directory with a checkpoint of the built-in family, which loads."""
    (version / "module.py").unlink()
    (version / "config.json").write_text(json.dumps(checkpoints.CONFIG))
    save_file(checkpoints.tensors(checkpoints.CONFIG), version / "model.safetensors")
    return version


def bert_config(version: Path, **more: Any) -> ModelConfig:
    ids = tensor("INPUT_IDS", INT32, -1, allow_ragged_batch=True)
    states = tensor("HIDDEN_STATES", FP32, -1, 8)
    return model_config(version.parent, [ids], [states], engine="torch", **more)


def test_a_config_of_nonsense(bert: Path) -> None:
    load_engine(bert_config(bert))
    for text in ("[" * 100_000, "{", *map(json.dumps, CONFIGS)):
        (bert / "config.json").write_text(text)
        assert_refused("", load_engine, bert_config(bert))


def test_weights_that_are_missing_are_named(bert: Path) -> None:
    weights, name = checkpoints.tensors(checkpoints.CONFIG), "encoder.layer.1.output.dense.weight"
    del weights[name]
    save_file(weights, bert / "model.safetensors")
    assert_refused(rf"no tensor '{re.escape(name)}'", load_engine, bert_config(bert))
    (bert / "model.safetensors").unlink()
    assert_refused(r"no \*\.safetensors in .*times/1", load_engine, bert_config(bert))


def test_more_stages_than_layers_are_named(bert: Path) -> None:
    place = 0, 1, 0, 3, torch.float32, torch.device("cpu"), bert, {}
    sentence = "pipeline_parallel_size 3 is more than the model's 2"
    assert_refused(sentence, source.read(bert).build, Shard(*place, Alone()))


# -- module.py that does what it should not ------------------------------------------------------


@pytest.mark.parametrize("title", MODULES)
def test_code_that_misbehaves(version: Path, runtime: Path, title: str) -> None:
    text, sentence = MODULES[title]
    (version / "module.py").write_text(text)
    assert_refused(sentence, load, times_config(version), runtime)


def test_one_rank_fails_while_the_other_waits_for_it(version: Path, runtime: Path) -> None:
    (version / "module.py").write_text(
        "import torch\ndef build(shard):\n    if shard.rank: raise KeyError('w')\n"
        "    return shard.all_reduce(torch.ones(4))"
    )
    config = times_config(version, tensor_parallel_size=2)
    assert_refused("KeyError: 'w'", load, config, runtime)
    assert rank_processes(os.getpid()) == {}


def test_the_next_good_one_loads(version: Path, runtime: Path) -> None:
    """And what is refused above is refused for its fault."""
    admit(times_config(version))
    load_engine(times_config(version))
    with served(times_config(version), runtime) as replica:
        outputs = replica.ask(X=np.ones((1, 2), np.float32)).result(LIMIT)
        assert outputs["Y"].tolist() == [[2, 3]]
    (version / MANIFEST).write_text(json.dumps(manifest(version)))
    admit(times_config(version))
    load_engine(times_config(version))


@pytest.mark.parametrize("name", ["../2/secret", "../../secret", "/{}", "1/../../secret"])
def test_a_manifest_names_a_file_outside(version: Path, name: str) -> None:
    """With the right size and hash: it is none of the model's business all the same."""
    secret = version.parent.parent / "secret"
    for path in (secret, version.parent / "2" / "secret"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("secret")
    content = manifest(version)
    content["files"][str(secret) if name == "/{}" else name] = {
        "size": len("secret"),
        "sha256": sha256(secret),
    }
    (version / MANIFEST).write_text(json.dumps(content))
    assert "is missing" not in assert_refused("secret", admit, times_config(version))
