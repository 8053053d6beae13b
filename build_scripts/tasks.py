"""What a job's task makes of its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.job import Job
from python_mp.sharding.families.task import OUTPUTS, Kind, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def of(job: Job, checkpoint: Checkpoint) -> Task | None:
    """The task with the settings that the checkpoint's folder has for it; None without one."""
    return made(job.task, checkpoint) if job.task else None


def made(kind: Kind, checkpoint: Checkpoint) -> Task:
    """The same for a task that is known."""
    return Task(kind, checkpoint.settings.pooling if kind == "embed" else ())


def check_outputs(job: Job, checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    """Raises BuildError where config.pbtxt has other outputs than the task makes."""
    name, width = OUTPUTS[job.task], width_of(of(job, checkpoint), config)
    by_token = job.task in (None, "tokens")
    dims = (-1, width) if by_token else (width,)
    found = {spec.name: spec.dims for spec in job.config.outputs}
    if found != {name: dims}:
        wanted = f"{name} with dims: [ {', '.join(map(str, dims))} ]"
        raise BuildError(
            f"{job.folder / 'config.pbtxt'} has the outputs {found}; of this checkpoint comes"
            f" {wanted} for the task {job.task or '(none)'}, as {job.home / 'config.pbtxt'} says."
            f" Write so there, and {width} in the ensemble and the steps that follow."
        )


def width_of(task: Task | None, config: PretrainedConfig) -> int:
    """Of the vector or the logits that come of it."""
    hidden: int = config.hidden_size
    if task is None:
        return hidden
    return hidden * len(task.pooling) if task.kind == "embed" else int(config.num_labels or 1)
