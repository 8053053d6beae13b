"""Builds without engines: a tiny model, and stages that write a few bytes and say that they ran."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress
from safetensors.numpy import save_file

from build_scripts import artifact, command, job, publish, stages
from build_scripts.job import Job
from build_scripts.outcome import Result

CONFIG = """# Kept, as all comments.
name: "tiny"
backend: "python_mp"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] } ]
instance_group [
  { name: "lead" kind: KIND_CPU },
  { name: "shard" kind: KIND_CPU passive: true }  # the other rank
]
parameters { key: "tensor_parallel_size" value { string_value: "2" } }
"""
RECIPE = """family = "module"
source = "{source}"
keep = 2
[shapes]
rows = [1, 2, 8]
[accuracy]
cosine_min = 0.9
"""


@dataclass
class FakeStage:
    """A stage that writes `files`; `ran` counts, and so does a file that outlives processes."""

    NEEDS: tuple[str, ...] = ("fetch",)
    files: Callable[[Job], dict[str, str]] = lambda _job: {"made": "made"}
    decides: dict[str, object] = field(default_factory=dict)
    applicable: bool = True
    ran: int = 0
    log: Path | None = None
    TOOLS: tuple[str, ...] = ()

    def applies(self, _job: Job) -> bool:
        return self.applicable

    def inputs(self, job: Job) -> dict[str, object]:
        return self.decides | {"layout": str(job.layout), "engine": job.recipe.engine}

    def run(self, job: Job, out: Path, _progress: Progress) -> None:
        self.ran += 1
        if self.log:
            with self.log.open("a") as file:
                file.write("ran\n")
        for name, text in self.files(job).items():
            (out / name).write_text(text)


@dataclass
class Workshop:
    """A repository with the model `tiny`, and a workspace."""

    repository: Path
    workspace: Path
    shard: FakeStage
    verify: FakeStage

    @property
    def model(self) -> Path:
        return self.repository / "tiny"

    def job(self, **overrides: Any) -> Job:
        return job.load("tiny", self.repository, overrides, self.workspace)

    def build(self, *, publishing: bool = True, **overrides: Any) -> Result:
        return artifact.build(self.job(**overrides), command.progress(), publishing=publishing)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.model / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def state(self) -> dict[str, bytes]:
        """All files of the model that can be seen, and what they hold."""
        paths = sorted(self.model.rglob("*"))
        return {
            str(path.relative_to(self.model)): path.read_bytes()
            for path in paths
            if path.is_file() and not path.relative_to(self.model).parts[0].startswith(".")
        }

    def versions(self) -> list[int]:
        return publish.versions(self.model)


def verdict(passed: bool = True) -> dict[str, str]:
    found = {
        "accuracy": {"cosine_min": 0.95 if passed else 0.5},
        "latency": {"p50_ms": 1.5},
        "worst": [{"sample": 3, "cosine": 0.5}],
        "misses": [] if passed else ["cosine_min is 0.5, not >= 0.9"],
        "passed": passed,
    }
    return {"verify.json": json.dumps(found)}


def judge(passed: bool = True) -> FakeStage:
    """Stands for `verify`."""
    return FakeStage(NEEDS=("fetch", "shards"), files=lambda _job: verdict(passed))


def rank_files(made: Job) -> dict[str, str]:
    suffix = {"torch": "safetensors", "onnxruntime": "onnx"}[made.recipe.engine]
    return {f"rank{rank}.{suffix}": f"weights of {rank}" for rank in range(made.world_size)}


def workshop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """`tiny` with its checkpoint in a folder, and fakes for the stages after `fetch`."""
    model = folder / "repository" / "tiny"
    checkpoint = folder / "checkpoint"
    for each in (model, checkpoint, folder / "workspace"):
        each.mkdir(parents=True)
    save_file({"w": np.ones(4, np.float32)}, checkpoint / "model.safetensors")
    (model / "config.pbtxt").write_text(CONFIG)
    (model / "recipe.toml").write_text(RECIPE.format(source=checkpoint))
    (model / "module.py").write_text("def build(shard): ...\n")
    made = Workshop(
        folder / "repository",
        folder / "workspace",
        shard=FakeStage(files=rank_files, log=folder / "ran"),
        verify=judge(),
    )
    put_stages(monkeypatch, shards=made.shard, verify=made.verify)
    return made


def put_stages(monkeypatch: pytest.MonkeyPatch, **fakes: FakeStage) -> None:
    """Only `fetch`, and these in the places of the real ones."""
    monkeypatch.setattr(stages, "ORDER", ("fetch", *fakes))
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, f"build_scripts.{name}", fake)
