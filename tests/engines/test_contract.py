"""What every engine must do; a new engine adds a line to ENGINES."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from safetensors.numpy import save_file

from python_mp.batch import CU_SEQLENS
from python_mp.config import ModelConfig
from python_mp.errors import InvalidInput
from python_mp.front import scratch
from python_mp.rank import engines
from python_mp.rank.engines import Engine, aot_inductor
from python_mp.rank.engines.echo import REFUSE
from tests.engines import building
from tests.support.harness import (
    FP32,
    INT32,
    Array,
    counted,
    lone_rank,
    model_config,
    pids,
    served,
    tensor,
    until,
)

ENGINES = ["echo", "torch", "aot_inductor", "onnxruntime"]
BUILT = ENGINES[2:]

CONFIG = """
name: "contract"
backend: "python_mp"
max_batch_size: 64
input [
  { name: "X" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true },
  { name: "A" data_type: TYPE_FP32 dims: [ 2 ] },
  { name: "FAULT" data_type: TYPE_INT32 dims: [ 3 ] }
]
output [
  { name: "Y" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "Z" data_type: TYPE_FP32 dims: [ 2 ] }
]
instance_group [ { name: "lead" kind: KIND_CPU } ]
parameters { key: "engine" value { string_value: "torch" } }
"""
RECIPE = """
family = "module"
source = "{source}"
[shapes]
tokens = [1, 8, 64]
[accuracy]
max_error = 0.0
"""

MODULE = """
from python_mp.errors import InvalidInput
from torch import nn

def build(shard):
    return Identity()

def check(batch):
    if batch["FAULT"].any():
        raise InvalidInput("refused as asked")

class Identity(nn.Module):
    def forward(self, batch, hidden):
        return {"Y": batch["X"].clone(), "Z": batch["A"].clone()}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what a test has built is found by the next one."""
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(params=ENGINES)
def config(request: pytest.FixtureRequest, tmp_path: Path, workspace: Path) -> ModelConfig:
    """X -> Y ragged, A -> Z not; FAULT asks for a refusal."""
    if request.param in BUILT:
        return built(request.param, tmp_path, workspace)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "module.py").write_text(MODULE)
    x = tensor("X", INT32, -1, allow_ragged_batch=True)
    return model_config(
        tmp_path,
        [x, tensor("A", FP32, 2), tensor("FAULT", INT32, 3)],
        [tensor("Y", INT32, -1), tensor("Z", FP32, 2)],
        engine=request.param,
    )


def built(engine: str, folder: Path, workspace: Path) -> ModelConfig:
    """The same model, by the build."""
    source, model = workspace / "source", folder / "contract"
    source.mkdir(exist_ok=True)
    save_file({"nothing": np.zeros(1, np.float32)}, source / "model.safetensors")
    model.mkdir()
    (model / "module.py").write_text(MODULE)
    (model / "config.pbtxt").write_text(CONFIG)
    (model / "recipe.toml").write_text(RECIPE.format(source=source))
    job = building.plan(folder, "contract", workspace, engine=engine)
    return job.served_from(building.build(job), folder / "served")


@pytest.fixture
def engine(config: ModelConfig) -> Iterator[Engine]:
    engine = engines.load(lone_rank(config))
    yield engine
    engine.close()


def packed(lengths: Sequence[int], fault: int = 0) -> dict[str, Array]:
    rows, tokens = len(lengths), sum(lengths)
    return {
        CU_SEQLENS: np.cumsum([0, *lengths]).astype(np.int32),
        "X": np.arange(tokens, dtype=np.int32),
        "A": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2),
        "FAULT": np.array([[fault, 0, 0]] * rows, np.int32),
    }


def test_forward_returns_the_outputs_of_config_pbtxt(engine: Engine) -> None:
    for lengths in ([3], [1, 5, 2], [1], [4, 4]):
        inputs = packed(lengths)
        outputs = engine.forward(inputs)
        assert outputs.keys() == {"Y", "Z"}
        assert [outputs[name].dtype.name for name in "YZ"] == ["int32", "float32"]
        assert np.array_equal(outputs["Y"], inputs["X"])
        assert np.array_equal(outputs["Z"], inputs["A"])


def test_inputs_are_left_as_they_were(engine: Engine) -> None:
    inputs = packed([2, 3])
    engine.forward(inputs)
    for name, array in packed([2, 3]).items():
        assert np.array_equal(inputs[name], array)


def test_an_engine_that_refused_still_serves(engine: Engine) -> None:
    for _ in range(2):
        with pytest.raises(InvalidInput, match="refused as asked"):
            engine.forward(packed([2, 1], fault=REFUSE))
        assert np.array_equal(engine.forward(packed([2]))["Y"], [0, 1])


def test_the_time_waited_never_falls(engine: Engine) -> None:
    before = engine.waited_ns()
    engine.forward(packed([2]))
    assert 0 <= before <= engine.waited_ns()
    assert isinstance(before, int)


def unpacked(config: ModelConfig) -> set[Path]:
    """Files like those that are packed in the artifact's files; torch would put them into /tmp."""
    names = {
        Path(member).name
        for package in (config.folder).glob("*.pt2")
        for member in ZipFile(package).namelist()
    }
    folders = {Path("/tmp"), Path(tempfile.gettempdir())}
    return {
        Path(root, name)
        for folder in folders
        for root, _, files in os.walk(folder)
        for name in names.intersection(files)
    }


def test_ranks_leave_no_file_however_they_end(config: ModelConfig, tmp_path: Path) -> None:
    before = unpacked(config)
    run = tmp_path / "run"
    run.mkdir()
    for _ in range(2):
        with served(config, run) as replica:
            for generation in range(2, 4):
                os.kill(pids(replica)[0], signal.SIGKILL)
                until(
                    lambda want=generation: (
                        counted(replica, "generation", "ranks_alive") == [want, 1]
                    )
                )  # type: ignore[misc]
    assert unpacked(config) == before
    assert [path for path in run.rglob("*") if not path.is_dir()] == []
    assert not list(run.glob("ranks-*"))


def test_what_an_older_torch_puts_into_tmp_goes_too(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 2.13 its loader takes no folder, and takes the package apart in /tmp."""
    loader = aot_inductor._loader

    def older(package: Path, gpu: int) -> Any:
        if package.is_dir():
            raise RuntimeError("Failed to initialize zip archive")
        return loader(package, gpu)

    monkeypatch.setattr(aot_inductor, "_loader", older)
    config = built("aot_inductor", tmp_path, workspace)
    before = unpacked(config)
    folder = scratch.make(tmp_path, 0, 1)
    engine = engines.load(replace(lone_rank(config), scratch=str(folder)))
    inputs = packed([2, 1])
    np.testing.assert_array_equal(engine.forward(inputs)["Y"], inputs["X"])
    assert len([file for file in unpacked(config) - before if "/ranks-" not in str(file)]) > 1
    scratch.remove(folder)
    assert unpacked(config) == before
    np.testing.assert_array_equal(engine.forward(inputs)["Y"], inputs["X"])
