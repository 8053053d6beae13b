"""Whatever a stage reads of the recipe and of config.pbtxt is in its key: a run that notes what it
reads is compared with what was read to make the key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress

from build_scripts import job as jobs
from build_scripts import ranks, recipe, stages
from build_scripts.job import Job
from build_scripts.stages import Step
from python_mp.model.config import ModelConfig
from python_mp.model.parameters import Parameters
from tests.process.test_stage_keys import encoder, ranker

NOTED = (
    recipe.Recipe,
    recipe.Shapes,
    recipe.Calibration,
    recipe.Accuracy,
    recipe.TensorRt,
    ModelConfig,
    Parameters,
)
PASSED_OVER = {
    "ModelConfig.name",
    "ModelConfig.folder",
    "ModelConfig.version",
    "ModelConfig.queue_seconds",
}
"""Where things lie, what they are called and how long somebody may wait decides nothing."""


@contextmanager
def noted(patched: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The fields that are read meanwhile, as `Class.field`."""
    read: set[str] = set()
    with patched.context() as patch:
        for kind in NOTED:
            names = _fields(kind)

            def get(self: Any, name: str, kind: Any = kind, names: set[str] = names) -> Any:
                if name in names:
                    read.add(f"{kind.__name__}.{name}")
                return object.__getattribute__(self, name)

            patch.setattr(kind, "__getattribute__", get, raising=False)
        yield read


def _fields(kind: Any) -> set[str]:
    return {each.name for each in fields(kind)} if is_dataclass(kind) else {*kind.__struct_fields__}


def in_the_key(
    job: Job, steps: dict[str, Step], name: str, patched: pytest.MonkeyPatch
) -> set[str]:
    """What was read for the key of a stage, and of those whose outputs it is given."""
    fresh = replace(job)
    fresh.__dict__["config"] = job.config
    step = steps[name]
    with noted(patched) as read:
        stages._step(fresh, name, step.stage, steps)
        stages.applies(step.stage, fresh)
    needs = (in_the_key(job, steps, need, patched) for need in step.stage.NEEDS if need in steps)
    return read.union(*needs)


def serial(job: Job, work: Callable[..., None], out: Path, _progress: Progress, _what: str) -> None:
    for rank in range(job.world_size):
        work(job, rank, out)


def compiled(_program: object, package_path: str, **_options: object) -> None:
    Path(package_path).write_text("compiled")


def with_engine(repository: Path, engine: str) -> None:
    encoder(repository)
    path = repository / "m" / "recipe.toml"
    path.write_text(path.read_text().replace("[shapes]", f"{engine}\n[shapes]", 1))


def aot(repository: Path) -> None:
    with_engine(repository, 'engine = "aot_inductor"')


def tensorrt(repository: Path) -> None:
    """ModelOpt patches ONNX Runtime; for the others it must be as it was."""
    with_engine(repository, 'engine = "tensorrt"\ndtype = "float16"')


@pytest.mark.parametrize("make", [tensorrt, ranker, encoder, aot])
def test_what_a_stage_reads_is_in_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(Job, "name", "m")  # it shows engine and layout
    monkeypatch.setattr(ranks, "each", serial)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compiled)
    make(tmp_path / "repository")
    job = jobs.load("m", tmp_path / "repository", workspace=tmp_path / "workspace")
    steps = stages.plan(job)
    needs_tensorrt = {"compile"} if make is tensorrt else set()
    for name in [name for name in steps if name not in {"verify", *needs_tensorrt}]:
        with noted(monkeypatch) as read:
            stages.ensure(job, steps, name, Progress(disable=True))
        assert read - PASSED_OVER - in_the_key(job, steps, name, monkeypatch) == set(), name
