"""Stage `publish`: verified files become a new version of the model in the repository.

model_repository/MODEL/
    .building-x7/   filled and fsynced; a build killed here is swept away by the next
    3/              it appears by one rename, whole, and is never changed
    1/              removed last, when there are more than the recipe's `keep`

No other file is touched.
"""

import json
import math
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.progress import Progress

from build_scripts import code, fetch, room, storage
from build_scripts.compile import gpu
from build_scripts.job import Job
from build_scripts.stages import Step, artifact_stage
from python_mp.model import admission, manifest
from python_mp.model.errors import LoadError
from python_mp.model.manifest import Manifest

Steps = dict[str, Step]


def artifact_key(job: Job, steps: Steps) -> str:
    """A hash of everything that decides what is published."""
    decides: dict[str, Any] = {
        "stages": {name: steps[name].identity for name in (artifact_stage(steps), list(steps)[-1])},
        "module": job.module_sha256,
    }
    if not job.recipe.is_step:
        decides["inputs"] = manifest.tensors(job.config.inputs)
        decides["outputs"] = manifest.tensors(job.config.outputs)
    return storage.digest(decides)


def versions(folder: Path) -> list[int]:
    """Numbers of a model's version directories, ascending."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal())


def current(job: Job, steps: Steps) -> Manifest | None:
    """The newest version's manifest, if that is what the job would publish, whole, and fits."""
    numbers = versions(job.folder)
    folder = job.folder / str(max(numbers, default=0))
    try:
        found = Manifest.read(folder)
        if found is None or found.artifact != artifact_key(job, steps):
            return None
        if found.accuracy.get(room.LACKS, math.inf) <= room.available():
            return None
        admission.check_files(folder, found)
    except LoadError:
        return None
    return None if machine_misfits(found) else found


def machine_misfits(found: Manifest) -> list[str]:
    """Why this machine cannot serve it; none where it can."""
    present = gpu() if found.hardware["gpu"] else None
    misfits = admission.machine_misfit(found), admission.gpu_misfit(found, present)
    return [misfit for misfit in misfits if misfit]


def run(job: Job, steps: Steps, progress: Progress) -> Manifest:
    """Publish the output of the job's last stage, which has passed `verify`; returns its manifest.

    Raises:
        BuildError: the disk is full. The repository is as it was.
    """
    waiting = f"{job.model}: waits for another build to publish"
    with storage.locked(job.folder, lambda: progress.log(waiting)):
        storage.sweep(job.folder)
        published = current(job, steps) or _publish(job, steps)
        _retire(job)
    return published


def _publish(job: Job, steps: Steps) -> Manifest:
    files = steps[artifact_stage(steps)].output()
    storage.require_space(job.folder, sum(path.stat().st_size for path in files.values()))
    number = max(versions(job.folder), default=0) + 1
    with storage.appearing(job.folder / str(number)) as building:
        return fill(job, steps, building)


def fill(job: Job, steps: Steps, folder: Path) -> Manifest:
    """Makes the folder the version that the job's last stage gives; returns its manifest."""
    storage.copy(steps[artifact_stage(steps)].output(), folder)
    described = describe(job, steps, folder)
    described.write(folder)
    return described


def _retire(job: Job) -> None:
    """Remove the oldest published versions beyond those to keep; hand-made ones stay."""
    folders = [job.folder / str(number) for number in versions(job.folder)]
    published = [folder for folder in folders if (folder / manifest.NAME).exists()]
    for old in published[: -job.recipe.keep]:
        storage.remove(old)


def verdict(steps: Steps) -> dict[str, Any]:
    """What `verify` found: `passed` or which bounds it `misses`, `accuracy`, `latency`, and the
    `worst` samples."""
    if "verify" not in steps:
        return {"passed": True, "accuracy": {}, "latency": {}}
    return dict(json.loads((steps["verify"].folder / "verify.json").read_text()))


def _rows(job: Job, source: fetch.Source) -> dict[str, str]:
    """How a model of transformers takes its batches."""
    if job.recipe.family != "transformers":
        return {}
    from python_mp.sharding.families import skeleton, transformers

    return {"rows": skeleton.rows(transformers.read(source.folder / "config.json"), job.task)}


def describe(job: Job, steps: Steps, folder: Path) -> Manifest:
    """The manifest of the files that lie in `folder`."""
    source, facts = fetch.read(job), steps[artifact_stage(steps)].facts()
    tools = {tool: number for step in steps.values() for tool, number in step.versions.items()}
    mine = code.versions(("triton-multi-device",))
    machine = platform.machine()
    hardware: dict[str, Any] = {"machine": machine, "cpu": None, "cpu_features": [], "gpu": None}
    is_step = job.recipe.is_step
    found = verdict(steps)
    return Manifest(
        artifact=artifact_key(job, steps),
        model=job.model,
        family=job.recipe.family,
        engine=job.recipe.engine,
        dtype=job.recipe.dtype,
        layout={} if is_step else asdict(job.layout),
        inputs=[] if is_step else manifest.tensors(job.config.inputs),
        outputs=[] if is_step else manifest.tensors(job.config.outputs),
        source={
            "id": source.id,
            "sha256": source.sha256,
            "facts": dict(source.facts),
            "tokenizer": source.tokenizer,
        },
        files={name: storage.described(path) for name, path in storage.files(folder).items()},
        versions={
            "python": platform.python_version(),
            **mine,
            **tools,
            **facts.get("versions", {}),
        },
        hardware=hardware | facts.get("hardware", {}),
        options=_rows(job, source) | facts.get("options", {}),
        recipe=job.recipe.as_json(),
        accuracy=found["accuracy"],
        latency=found["latency"],
        built=datetime.now(UTC).isoformat(timespec="seconds"),
    )
