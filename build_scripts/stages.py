"""The stages of a build: what each depends on, and running those whose outputs are not there.

A stage is a module of this package (`Stage`). Its output lies in

    build/engines/MODEL/STAGE-<key>/    what the stage wrote, and
        stage.json                      key, inputs, seconds, size and sha256 of each file
        facts.json                      if the stage wrote it: `hardware`, `options` and `versions`
                                        for the manifest; `lacks_memory` (room.py)

The key is a hash of everything that decides the outcome: the stage's inputs, its code and all that
it imports, the tools, the model's tensors, and the keys of the outputs it reads. So it is known
before anything is run, and an output that lies there under its key is the one that running the
stage would give.
"""

import json
import os
import platform
import shutil
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from rich.progress import Progress

from build_scripts import code, room, storage
from build_scripts.code import versions
from build_scripts.job import Job
from build_scripts.job import artifact_stage as artifact_stage

ORDER = ("fetch", "reference", "shards", "export", "quantise", "compile", "verify")
STEP_ORDER = ("fetch", "ranges", "step")
RECORD, FACTS = "stage.json", "facts.json"
KEPT_OUTPUTS = 10
"""Of each stage of a model: enough for its variants, few enough for a laptop's disk."""


class Stage(Protocol):
    """What a stage's module has."""

    NEEDS: tuple[str, ...]
    """Stages whose outputs it reads; those that do not apply to a job are passed over."""
    TOOLS: tuple[str, ...]
    """Distributions whose versions decide the outcome."""

    def inputs(self, job: Job) -> dict[str, object]:
        """JSON values that decide the outcome."""

    def run(self, job: Job, out: Path, progress: Progress) -> None:
        """Writes files into the empty folder `out`."""

    # And, where it is not for every engine:
    # def applies(self, job: Job) -> bool
    # and, where the outcome fits some machines only:
    # def machine(self, job: Job) -> dict[str, object]: JSON values that say which.


@dataclass(frozen=True)
class Step:
    """A stage of one job."""

    name: str
    stage: Stage
    folder: Path
    recipe: dict[str, object]
    """What its key is the hash of."""
    identity: str
    """A hash of the same but the machine, here and in what it needs: of what would be made
    anywhere."""

    @property
    def key(self) -> str:
        return storage.digest(self.recipe)

    @property
    def versions(self) -> dict[str, str]:
        return versions(self.stage.TOOLS)

    def is_done(self, *, content: bool = False) -> bool:
        """Whether the output is there with all files in their sizes, or with their `content`, and
        lacks nothing that this machine has memory for."""
        record = _record(self.folder)
        if record.get("key") != self.key:
            return False
        if (lacked := self.facts().get(room.LACKS)) and lacked <= room.available():
            return False
        found = storage.files(self.folder)
        found.pop(RECORD)
        same = found.keys() == record["files"].keys()
        return same and all(
            path.stat().st_size == record["files"][name]["size"]
            and not (content and storage.sha256(path) != record["files"][name]["sha256"])
            for name, path in found.items()
        )

    def facts(self) -> dict[str, Any]:
        path = self.folder / FACTS
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def output(self) -> dict[str, Path]:
        """The files the stage wrote, without those about it."""
        found = storage.files(self.folder)
        return {name: path for name, path in found.items() if name not in (RECORD, FACTS)}


def plan(job: Job) -> dict[str, Step]:
    """The stages that apply to the job, in order, and where their outputs are or will be."""
    order = STEP_ORDER if job.recipe.is_step else ORDER
    steps: dict[str, Step] = {}
    for name in order:
        stage = cast(Stage, import_module(f"{__package__}.{name}"))
        if applies(stage, job):
            steps[name] = _step(job, name, stage, steps)
            job.outputs[name] = steps[name].folder
    return steps


def applies(stage: Stage, job: Job) -> bool:
    """Whether a job of this engine has the stage."""
    return bool(stage.applies(job)) if hasattr(stage, "applies") else True


def _step(job: Job, name: str, stage: Stage, steps: dict[str, Step]) -> Step:
    recipe: dict[str, object] = {
        "stage": name,
        "inputs": stage.inputs(job),
        "needs": {need: steps[need].key for need in stage.NEEDS if need in steps},
        "code": code.hashes(f"{__package__}.{name}"),
        "tools": versions(stage.TOOLS),
        "python": platform.python_version(),
    }
    if name != "fetch":  # whatever the stage reads, this is part of the model
        recipe["module"], recipe["config"] = job.module_sha256, job.tensors
    needs = {need: steps[need].identity for need in stage.NEEDS if need in steps}
    identity = storage.digest({**recipe, "needs": needs})
    if machine := getattr(stage, "machine", None):
        recipe["machine"] = machine(job)
    folder = job.workspace / job.model / f"{name}-{storage.digest(recipe)[:12]}"
    return Step(name, stage, folder, recipe, identity)


def ensure(
    job: Job, steps: dict[str, Step], name: str, progress: Progress, *, content: bool = False
) -> float:
    """Have the output of stage `name`, running it and what it needs where they are not done.

    Args:
        content: read every byte of an output that is there, too.

    Returns:
        Seconds that stages have run.

    Raises:
        BuildError: a stage cannot be done. What was done before it is kept.
    """
    step = steps[name]
    if step.is_done(content=content):
        os.utime(step.folder)  # the newest outputs are kept
        return 0
    seconds = sum(ensure(job, steps, need, progress) for need in step.stage.NEEDS if need in steps)
    return seconds + _run(job, step, progress)


def _run(job: Job, step: Step, progress: Progress) -> float:
    shown = set(progress.task_ids)
    task = progress.add_task(f"{job.name}: {step.name}", total=None)
    start = time.monotonic()
    with storage.appearing(step.folder) as out:
        step.stage.run(job, out, progress)
        seconds = time.monotonic() - start
        files = {name: storage.described(path) for name, path in storage.files(out).items()}
        record = {"key": step.key, "recipe": step.recipe, "seconds": seconds, "files": files}
        storage.write_json(out / RECORD, record)
    for inner in set(progress.task_ids) - shown - {task}:
        progress.remove_task(inner)
    progress.update(task, total=1, completed=1)
    if progress.disable:
        progress.console.print(f"{job.name}: {step.name} {seconds:.1f} s", markup=False)
    return seconds


def _record(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError):
        return {}


def clean(job: Job) -> None:
    """Remove what killed builds left, and all but the newest outputs of each stage; of stages that
    are no more, all."""
    folder = job.workspace / job.model
    storage.sweep(folder)
    by_stage: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*-*"), key=lambda path: path.stat().st_mtime):
        by_stage.setdefault(path.name.rpartition("-")[0], []).append(path)
    for name, outputs in by_stage.items():
        kept = KEPT_OUTPUTS if name in (*ORDER, *STEP_ORDER) else 0
        for old in outputs[: max(0, len(outputs) - kept)]:
            shutil.rmtree(old)
