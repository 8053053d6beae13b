"""A model whose files are wrong or whose code misbehaves is refused in a sentence, in time, and
leaves no process; the next good load works."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from python_mp.config import ModelConfig
from python_mp.errors import LoadError
from python_mp.front import keeper
from python_mp.front.nursery import Nursery
from python_mp.manifest import FORMAT, admit, sha256, tensors
from python_mp.manifest import NAME as MANIFEST
from python_mp.rank import engines
from tests.engines.test_module import tiny_tensors
from tests.process.bad_files import (
    CONFIGS,
    FIELDS,
    GOOD,
    MANIFESTS,
    MODULES,
    SAFETENSORS,
    SHAPES,
    START_SECONDS,
)
from tests.support.harness import (
    FP32,
    INT32,
    children,
    lone_rank,
    model_config,
    served,
    tensor,
    until,
)

LIMIT = 30.0  # on a busy machine
Damage = Callable[[Path], object]


def times_config(version: Path) -> ModelConfig:
    more = {"start_timeout_seconds": START_SECONDS, "engine": "torch"}
    return model_config(version.parent, [tensor("X", FP32, 2)], [tensor("Y", FP32, 2)], **more)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """What reads without end must not take the machine's memory; also for child processes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version directory that loads; each test then breaks it."""
    folder = tmp_path / "repository" / "times" / "1"
    folder.mkdir(parents=True)
    (folder / "module.py").write_text(GOOD)
    save_file({"w": np.array([2, 3], np.float32)}, folder / "model.safetensors")
    return folder


class Shared(Nursery):
    """For all loads: to import torch is most of a start. What a rank leaves behind becomes its
    child, however detached."""

    def close(self, *, at_once: bool = False) -> None:
        pass

    def end(self) -> None:
        super().close()


@pytest.fixture(scope="module")
def nurseries() -> Iterator[list[Shared]]:
    """The last one is to be used."""
    made: list[Shared] = []
    yield made
    for each in made:
        each.end()


@pytest.fixture
def runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nurseries: list[Shared]
) -> Iterator[Path]:
    """A run's folder; at the end nothing lives that was started for the model."""
    if not nurseries or not nurseries[-1].is_sound:
        nurseries.append(Shared("torch", 0))
        assert nurseries[-1].wait_ready(LIMIT)
    monkeypatch.setattr(keeper, "Nursery", lambda *_: nurseries[-1])
    folder = tmp_path / "runtime"
    folder.mkdir()
    yield folder
    until(lambda: [pid for each in children(os.getpid()) for pid in children(each)] == [], 2.0)


def assert_refused(version: Path, runtime: Path, sentence: str) -> str:
    """Loading fails with a sentence like this one, which is returned, in time."""
    config = times_config(version)
    began = time.monotonic()
    with pytest.raises(LoadError) as refused:
        load(config, runtime)
    assert time.monotonic() - began < LIMIT
    assert_sentence(refused.value, sentence)
    return str(refused.value)


def load(config: ModelConfig, runtime: Path) -> None:
    """As Triton's entry does, and ends it."""
    admit(config)
    with served(config, runtime):
        pass


def assert_sentence(error: LoadError, sentence: str) -> None:
    text = str(error)
    assert re.search(sentence, text), text
    assert "\n" not in text, text
    assert len(text) < 600, text


# -- what a version directory may not hold -------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_out(path: Path) -> None:
    outside = path.parents[3] / f"outside-{path.name}"
    (path.parents[3] / f"kept-{path.name}").rename(outside)
    path.symlink_to(outside)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def folder(path: Path) -> None:
    path.mkdir()


def a_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # its address may be no longer than 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("make", [fifo, device, link_out, dangling, folder, a_socket])
@pytest.mark.parametrize("name", ["module.py", "model.safetensors", MANIFEST])
def test_what_is_no_file_of_the_model(
    version: Path, runtime: Path, name: str, make: Damage
) -> None:
    path = version / name
    if name == MANIFEST:
        path.write_text(json.dumps(manifest(version)))
    path.rename(path.parents[3] / f"kept-{name}")
    make(path)
    assert "MemoryError" not in assert_refused(version, runtime, re.escape(name))


# -- manifest.json -------------------------------------------------------------------------------


def manifest(version: Path) -> dict[str, Any]:
    """One that fits; writes the weights of its only rank."""
    path = version / "rank0.safetensors"
    save_file({"w": np.array([2, 3], np.float32)}, path, {"shapes": json.dumps({"w": [2]})})
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
        "files": {path.name: record(path)},
    }


def record(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


@pytest.mark.parametrize("title", MANIFESTS)
def test_a_manifest_that_is_none(version: Path, title: str) -> None:
    content = MANIFESTS[title]
    (version / MANIFEST).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(LoadError) as refused:
        admit(times_config(version))
    assert_sentence(refused.value, MANIFEST)


@pytest.mark.parametrize("title", FIELDS)
def test_a_manifest_with_nonsense(version: Path, title: str) -> None:
    (version / MANIFEST).write_text(json.dumps(manifest(version) | FIELDS[title]))
    with pytest.raises(LoadError) as refused:
        admit(times_config(version))
    assert_sentence(refused.value, "times/1")


@pytest.mark.parametrize("name", ["../2/secret", "../../secret", "/{}", "1/../../secret"])
def test_a_manifest_names_a_file_outside(version: Path, name: str) -> None:
    """With the right size and hash: it is none of the model's business all the same."""
    secret = version.parent.parent / "secret"
    for path in (secret, version.parent / "2" / "secret"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("secret")
    named = str(secret) if name == "/{}" else name
    content = manifest(version)
    content["files"][named] = record(secret)
    (version / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(LoadError) as refused:
        admit(times_config(version))
    assert_sentence(refused.value, "secret")
    assert "is missing" not in str(refused.value)


# -- safetensors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("title", SAFETENSORS)
def test_safetensors_that_lie(version: Path, title: str) -> None:
    (version / "model.safetensors").write_bytes(SAFETENSORS[title])
    with pytest.raises(LoadError) as refused:
        engines.load(lone_rank(times_config(version)))
    assert_sentence(refused.value, r"safetensors")


@pytest.mark.parametrize("title", SHAPES)
def test_slices_without_their_shapes(version: Path, title: str) -> None:
    weights = {"w": np.array([2, 3], np.float32)}
    save_file(weights, version / "rank0.safetensors", SHAPES[title])
    with pytest.raises(LoadError) as refused:
        engines.load(lone_rank(times_config(version)))
    assert_sentence(refused.value, r"rank0\.safetensors")


# -- config.json of the built-in family ----------------------------------------------------------


@pytest.mark.parametrize("title", CONFIGS)
def test_a_config_of_nonsense(version: Path, title: str) -> None:
    text = "[" * 100_000 if title == "deep" else json.dumps(CONFIGS[title])
    (version / "module.py").unlink()
    (version / "config.json").write_text(text)
    save_file(tiny_tensors(), version / "model.safetensors")
    ids = tensor("INPUT_IDS", INT32, -1, allow_ragged_batch=True)
    states = tensor("HIDDEN_STATES", FP32, -1, 8)
    with pytest.raises(LoadError) as refused:
        engines.load(lone_rank(model_config(version.parent, [ids], [states], engine="torch")))
    assert_sentence(refused.value, "")


# -- module.py that does what it should not ------------------------------------------------------


@pytest.mark.parametrize("title", MODULES)
def test_code_that_misbehaves(version: Path, runtime: Path, title: str) -> None:
    source, sentence = MODULES[title]
    (version / "module.py").write_text(source)
    assert_refused(version, runtime, sentence)


def test_the_next_good_one_loads(version: Path, runtime: Path) -> None:
    """And what is refused above is refused for its fault."""
    admit(times_config(version))
    engines.load(lone_rank(times_config(version))).close()
    with served(times_config(version), runtime) as replica:
        outputs = replica.ask(X=np.ones((1, 2), np.float32)).result(LIMIT)
        assert outputs["Y"].tolist() == [[2, 3]]
    (version / MANIFEST).write_text(json.dumps(manifest(version)))
    admit(times_config(version))
    engines.load(lone_rank(times_config(version))).close()
