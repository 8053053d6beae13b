"""What a checkpoint that generates text says of itself, and what its model takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from build_scripts import storage, triton_config
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.job import Job
from python_mp.sharding.families.task import Task
from python_mp.wire.departures import SIZE

SAYS = "generation_config.json"
ENDLESS = 1 << 17
"""Tokens of a text where positions have no end: what a front makes room for."""
INPUTS: Mapping[str, tuple[str, tuple[int, ...]]] = {"INPUT_IDS": ("INT32", (-1,))}
OUTPUTS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "OUTPUT_IDS": ("INT32", (-1,)),
    "CONTEXT_IDS": ("INT32", (-1,)),
    "TRIM": ("INT32", (1,)),
    "FINISH_REASON": ("STRING", (1,)),
    "USAGE": ("INT32", (3,)),
    "LOGPROBS": ("FP32", (-1,)),
    "TOP_IDS": ("INT32", (-1, -1)),
    "TOP_LOGPROBS": ("FP32", (-1, -1)),
    "STREAM": ("INT32", (SIZE,)),
    "FAILURE": ("STRING", (1,)),
}
"""Types and dims, as Triton calls them."""
HANDED_ON = "STREAM", "FAILURE"
"""For the step behind it; a decoder that stands alone may do without."""


def task(checkpoint: Checkpoint) -> Task:
    """Raises BuildError where the checkpoint's ids make no sense."""
    from python_mp.sharding.families.transformers import longest_text

    config = checkpoint.architecture
    longest = longest_text(config)
    ends = storage.read_optional(checkpoint.file(SAYS)).get("eos_token_id")
    if ends is None:
        ends = getattr(config, "eos_token_id", None)
    return Task(
        "generate",
        context_length=ENDLESS if longest is None else longest,
        vocabulary=int(config.vocab_size),
        eos_token_ids=_ids(checkpoint, ends),
    )


def _ids(checkpoint: Checkpoint, said: Any) -> tuple[int, ...]:
    ids = said if isinstance(said, list) else [] if said is None else [said]
    if not all(type(each) is int and each >= 0 for each in ids):
        raise BuildError(
            f"The checkpoint {checkpoint.path} has eos_token_id {said!r}; it is an id, or a list"
            f" of some ({SAYS}, config.json)."
        )
    return tuple(ids)


def check(job: Job) -> None:
    """Raises BuildError where config.pbtxt is of another kind of model, or the recipe's engine
    cannot keep a cache."""
    if job.recipe.engine != "torch":
        raise BuildError(
            f"{job.model}: engine {job.recipe.engine} does not generate text; write"
            ' engine = "torch" in recipe.toml'
        )
    file = job.folder / triton_config.NAME
    if job.config.parameters.task != "generate":
        raise BuildError(f"{file} needs the parameter task, with the value generate")
    for kind, specs, wanted in (
        ("input", job.config.inputs, INPUTS),
        ("output", job.config.outputs, OUTPUTS),
    ):
        found = {spec.name: spec.dims for spec in specs}
        dims_of = {name: dims for name, (_, dims) in wanted.items()}
        if found | {n: d for n, d in dims_of.items() if n in HANDED_ON} != dims_of:
            names = ", ".join(f"{n} TYPE_{t} {list(dims)}" for n, (t, dims) in wanted.items())
            raise BuildError(f"{file} must have the {kind}s {names}")
