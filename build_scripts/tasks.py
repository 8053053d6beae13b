"""What a job's task makes of its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.job import Job
from python_mp.sharding.families.task import OUTPUTS, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def of(job: Job, checkpoint: Checkpoint) -> Task | None:
    """The task with the settings that the checkpoint's folder has for it; None without one."""
    if job.task is None:
        return None
    return Task(job.task, checkpoint.settings.pooling if job.task == "embed" else ())


def check_outputs(job: Job, checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    """Raises BuildError where config.pbtxt has other outputs than the task makes."""
    name, width = OUTPUTS[job.task], _width(of(job, checkpoint), config)
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


def _width(task: Task | None, config: PretrainedConfig) -> int:
    hidden: int = config.hidden_size
    if task is None:
        return hidden
    return hidden * len(task.pooling) if task.kind == "embed" else int(config.num_labels or 1)
