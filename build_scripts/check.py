"""Does what lies in the repository fit its recipe, its files and this machine? Nothing is built."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from build_scripts import publish, stages
from build_scripts.errors import BuildError
from build_scripts.job import Job
from build_scripts.publish import Steps
from python_mp.model import admission, ensembles, manifest
from python_mp.model.errors import LoadError
from python_mp.model.manifest import Manifest


def misfits(job: Job) -> list[str]:
    """What does not fit, each a sentence; none where all is well."""
    try:
        numbers = publish.versions(job.folder)
        found = Manifest.read(job.folder / str(max(numbers, default=0)))
        if found is None:
            return ["nothing is built yet"]
        return list(_misfits(job, found, job.folder / str(numbers[-1])))
    except (BuildError, LoadError) as error:
        return [str(error)]


def _misfits(job: Job, found: Manifest, folder: Path) -> Iterator[str]:
    steps = stages.plan(job)
    if wrong := job.contradiction:
        yield wrong
    if found.artifact != publish.artifact_key(job, steps):
        yield f"{folder.name}/ is not what would be built now: {_reason(job, steps, found)}"
    if misfit := ensembles.misfit(folder, found.source.get("tokenizer")):
        yield misfit
    yield from publish.machine_misfits(found)
    if not job.recipe.is_step:
        files = (
            manifest.rank_file(found.engine, rank, job.world_size) for rank in range(job.world_size)
        )
        for missing in (name for name in files if not (folder / name).is_file()):
            yield f"a rank is missing: there is no {folder / missing}"
    try:
        admission.check_files(folder, found)
    except LoadError as error:
        yield str(error)


def _reason(job: Job, steps: Steps, found: Manifest) -> str:
    """What has changed since, as far as the manifest can tell."""
    if changed := sorted(_differing(found.recipe, job.recipe.as_json())):
        return f"recipe.toml has another {', '.join(changed)}"
    if not job.recipe.is_step and found.layout != asdict(job.layout):
        return f"config.pbtxt has the layout {job.layout}"
    tools = {tool: number for step in steps.values() for tool, number in step.versions.items()}
    if newer := sorted(tool for tool in tools if found.versions.get(tool) != tools[tool]):
        return f"it was built by another version of {', '.join(newer)}"
    return "the checkpoint, config.pbtxt or the code that builds it have changed"


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in one.keys() | other.keys():
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from _differing(left, right, f"{prefix}{key}.")
        elif left != right:
            yield prefix + key
