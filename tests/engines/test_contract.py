"""What every engine must do; a new engine adds a line to ENGINES."""

import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from rich.progress import Progress
from safetensors.numpy import save_file

from build_scripts import job as jobs
from build_scripts import stages
from build_scripts.places import PROJECT
from python_mp.model.batch import CU_SEQLENS
from python_mp.model.config import ModelConfig
from python_mp.model.errors import InvalidInput
from python_mp.rank import engines
from python_mp.rank.engines import Engine
from python_mp.rank.engines.echo import REFUSE
from tests.support.configs import FP32, INT32, model_config, tensor
from tests.support.processes import until
from tests.support.replicas import Array, counted, lone_rank, pids, served

ENGINES = ["echo", "torch", "aot_inductor", "onnxruntime"]
BUILT = ENGINES[2:]
BUILDS = PROJECT / "build" / "tests"
"""What is compiled here is found by the next run, where nothing that decides it has changed."""

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
from python_mp.model.errors import InvalidInput
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


@pytest.fixture(scope="module", params=ENGINES)
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """X -> Y ragged, A -> Z not; FAULT asks for a refusal."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in BUILT:
        return built(request.param, folder)
    (folder / "1").mkdir()
    (folder / "1" / "module.py").write_text(MODULE)
    x = tensor("X", INT32, -1, allow_ragged_batch=True)
    return model_config(
        folder,
        [x, tensor("A", FP32, 2), tensor("FAULT", INT32, 3)],
        [tensor("Y", INT32, -1), tensor("Z", FP32, 2)],
        engine=request.param,
    )


def built(engine: str, folder: Path) -> ModelConfig:
    source, model = BUILDS / "source", folder / "contract"
    if not (weights := source / "model.safetensors").exists():
        source.mkdir(parents=True, exist_ok=True)
        save_file({"nothing": np.zeros(1, np.float32)}, weights)
    model.mkdir()
    (model / "module.py").write_text(MODULE)
    (model / "config.pbtxt").write_text(CONFIG)
    (model / "recipe.toml").write_text(RECIPE.format(source=source))
    job = jobs.load("contract", folder, {"engine": engine}, BUILDS / "engines")
    steps = stages.plan(job)
    *_, artifact = (name for name in steps if name != "verify")
    (job.workspace / job.model).mkdir(parents=True, exist_ok=True)
    stages.ensure(job, steps, artifact, Progress(disable=True))
    return job.served_from(job.output(artifact), folder / "served")


@pytest.fixture(scope="module")
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


def check_forward(engine: Engine, lengths: Sequence[int]) -> None:
    inputs = packed(lengths)
    outputs = engine.begin(inputs)()
    assert outputs.keys() == {"Y", "Z"}
    for name, wanted in (("Y", packed(lengths)["X"]), ("Z", packed(lengths)["A"])):
        np.testing.assert_array_equal(outputs[name], wanted, strict=True)
    for name, array in packed(lengths).items():
        np.testing.assert_array_equal(inputs[name], array, "an input was changed")


def test_forward_returns_the_outputs_of_config_pbtxt(engine: Engine) -> None:
    for lengths in ([3], [1, 5, 2], [1], [4, 4]):
        check_forward(engine, lengths)


def test_an_engine_that_refused_still_serves(engine: Engine) -> None:
    for _ in range(2):
        with pytest.raises(InvalidInput, match="refused as asked"):
            engine.begin(packed([2, 1], fault=REFUSE))
        check_forward(engine, [2])


def unpacked(config: ModelConfig) -> set[Path]:
    """Files like those that were compiled, of which each has a name of its own, and are packed in
    the artifact's files; torch would put them into /tmp."""
    names = {
        Path(member).name
        for package in config.folder.glob("*.pt2")
        for member in ZipFile(package).namelist()
        if "/aotinductor/" in member
    }
    return {
        Path(root, name)
        for folder in {"/tmp", tempfile.gettempdir()}
        for root, _, files in os.walk(folder)
        for name in names.intersection(files)
    }


def test_ranks_leave_no_file_however_they_end(config: ModelConfig, tmp_path: Path) -> None:
    before = unpacked(config)
    with served(config, tmp_path) as replica:
        os.kill(pids(replica)[0], signal.SIGKILL)
        until(lambda: counted(replica, "generation", "ranks_alive") == [2, 1])
    assert unpacked(config) == before
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    assert not list(tmp_path.glob("ranks-*"))
