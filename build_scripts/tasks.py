"""What a job's task makes of its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from build_scripts import checkpoint_images, checkpoint_tokenizer, decoder_checkpoint, triton_config
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.job import Job
from python_mp.sharding.families.task import OUTPUTS, Kind, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig


VECTOR_TYPES = "TYPE_FP32", "TYPE_INT8", "TYPE_UINT8"


def of(job: Job, checkpoint: Checkpoint) -> Task | None:
    """The task with the settings that the checkpoint's folder has for it; None without one."""
    return made(job.task, checkpoint) if job.task else None


def made(kind: Kind, checkpoint: Checkpoint) -> Task:
    """The same for a task that is known."""
    said = checkpoint.settings
    if kind == "generate":
        return decoder_checkpoint.task(checkpoint)
    return Task(kind, said.pooling, said.layers) if kind == "embed" else Task(kind)


def check_tensors(job: Job, checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    """Raises BuildError where config.pbtxt has other inputs than the task's steps make, or other
    outputs than the task makes."""
    if job.task == "generate":
        decoder_checkpoint.check(job)
        return
    _check_inputs(job, checkpoint, config)
    _check_outputs(job, checkpoint, config)


def _check_inputs(job: Job, checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    file, given = job.folder / "config.pbtxt", {spec.name: spec for spec in job.config.inputs}
    if "PIXEL_VALUES" in given and job.task == "classify":
        shape = checkpoint_images.load(checkpoint).shape
        if given["PIXEL_VALUES"].dims != shape:
            dims = ", ".join(map(str, shape))
            raise BuildError(
                f"{file} has PIXEL_VALUES with dims {given['PIXEL_VALUES'].dims}; the checkpoint's"
                f" image processor makes dims: [ {dims} ]. Write so there, and in the step before."
            )
    in_pairs = checkpoint.takes_pairs and "INPUT_IDS" in given
    wanted = in_pairs and checkpoint_tokenizer.has_types(checkpoint, config)
    if wanted != ("TOKEN_TYPE_IDS" in given):
        raise BuildError(
            f"{file} has {'no' if wanted else 'the'} input TOKEN_TYPE_IDS, which the checkpoint"
            f" {'needs' if wanted else 'does not have'}: {'add it' if wanted else 'take it out'}"
            " there, in the tokenizer's outputs and between them in the ensemble."
        )


def _check_outputs(job: Job, checkpoint: Checkpoint, config: PretrainedConfig) -> None:
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


def check_vectors(job: Job, checkpoint: Checkpoint) -> None:
    """Raises BuildError where config.pbtxt of the step `vectors` has another EMBEDDING than it
    makes."""
    width = width_of(made("embed", checkpoint), checkpoint.architecture)
    said = triton_config.outputs(job.folder)
    data_type, _ = said.get("EMBEDDING", ["", []])
    dims = [-(-width // 8) if data_type == "TYPE_UINT8" else width]
    if data_type not in VECTOR_TYPES or said != {"EMBEDDING": [data_type, dims]}:
        raise BuildError(
            f"{job.folder / 'config.pbtxt'} has the outputs {said}; it makes EMBEDDING, a"
            f" {', '.join(VECTOR_TYPES)} with dims: [ {width} ], or [ {-(-width // 8)} ] of bits"
            " (TYPE_UINT8). Write so there, and in the ensemble."
        )


def width_of(task: Task | None, config: PretrainedConfig) -> int:
    """Of the vector or the logits that come of it."""
    if task and task.kind == "generate":
        return task.vocabulary
    if task and task.kind != "embed":
        return int(config.num_labels or 1)
    hidden: int = getattr(config, "hidden_size", 0) or config.hidden_sizes[-1]  # of convolutions
    return _vector_width(task, hidden) if task else hidden


def _vector_width(task: Task, hidden: int) -> int:
    width = hidden * len(task.pooling)
    for layer in task.layers:
        if layer.kind == "Dense":
            if layer.inputs != width:
                raise BuildError(
                    f"The checkpoint's {layer.name}/config.json has in_features {layer.inputs}; it"
                    f" is given {width}."
                )
            width = layer.outputs
    return width
