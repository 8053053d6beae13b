"""Stage `reference`: what the outputs should be, by the model in one piece, in float32, in PyTorch.

Encoders are judged by Hugging Face's own implementation, a user's module by the `reference` that it
brings (see samples.py); where it brings none, one without our layers by itself as torch runs it,
another by itself on one rank: then a module that computes something else than its checkpoint was
trained for passes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import Progress

from build_scripts import continuations, fetch, layer_weights, room, storage, tasks
from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.job import Job
from python_mp.sharding.families.task import OUTPUTS

if TYPE_CHECKING:
    from torch import Tensor

    from python_mp.model.request import Array
    from python_mp.sharding.families.task import Task

    Outputs = dict[str, Array]

NEEDS = ("fetch",)
TOOLS = ("numpy", "pillow", "safetensors", "sentencepiece", "tokenizers", "torch", "transformers")
FILE = "outputs.npz"
ARGUMENTS = {
    "INPUT_IDS": "input_ids",
    "TOKEN_TYPE_IDS": "token_type_ids",
    "PIXEL_VALUES": "pixel_values",
}
"""Of transformers' models, by our inputs."""


def inputs(job: Job) -> dict[str, object]:
    return {"samples": job.samples}


def run(job: Job, out: Path, progress: Progress) -> None:
    """Writes `outputs.npz`: each sample's outputs, float32, with their batch dimension; or where
    the model does not fit the memory, how much it lacks."""
    import torch

    from build_scripts import samples

    requests = samples.judged(job).requests
    nbytes = room.reference(fetch.read(job).folder)
    if nbytes > room.available() and not samples.has_reference(job):
        storage.write_json(out / "facts.json", {room.LACKS: nbytes})
        return
    with torch.inference_mode():
        outputs = computed(job, requests)
        shown = progress.track(outputs, len(requests), description=f"{job.name}: reference")
        arrays = {f"{n}/{name}": a for n, each in enumerate(shown) for name, a in each.items()}
    np.savez(out / FILE, **arrays)


def computed(job: Job, requests: Sequence[dict[str, Array]]) -> Iterable[Outputs]:
    """What the requests' outputs should be, in their order."""
    from build_scripts import samples

    if (given := samples.reference(job, requests)) is not None:
        return given
    if job.recipe.family == "transformers":
        return _checkpoint(job, fetch.checkpoint(job), requests)
    return _module(job, fetch.read(job).folder, requests)


def lacked(job: Job) -> int:
    """Bytes of memory for want of which there are no outputs; 0 where there are."""
    path = job.output("reference") / "facts.json"
    return int(storage.read_json(path)[room.LACKS]) if path.is_file() else 0


def read(job: Job) -> list[Outputs]:
    """The outputs by sample."""
    outputs: list[Outputs] = []
    with np.load(job.output("reference") / FILE) as arrays:
        for key in arrays.files:  # in the order they were written
            number, _, name = key.partition("/")
            if int(number) == len(outputs):
                outputs.append({})
            outputs[int(number)][name] = arrays[key]
    return outputs


def _checkpoint(
    job: Job, checkpoint: Checkpoint, requests: Sequence[dict[str, Array]]
) -> Iterator[Outputs]:
    """By transformers, one request at a time."""
    import torch

    model, task = checkpoint.model(), tasks.of(job, checkpoint)
    if job.task == "generate":
        yield from (continuations.reference(model, each) for each in requests)
        return
    vectors = _vectors(checkpoint, task) if task and task.kind == "embed" else None
    for request in requests:
        given = {ARGUMENTS[n]: torch.from_numpy(a) for n, a in request.items() if n in ARGUMENTS}
        found = model(**given)
        made = found.last_hidden_state if "last_hidden_state" in found else found.logits
        if made.dim() == 4:  # of convolutions
            made = made.flatten(2).transpose(1, 2)
        if vectors is not None:
            made = vectors(made[0])
        yield {OUTPUTS[job.task]: made.numpy()}


def _vectors(checkpoint: Checkpoint, task: Task) -> Callable[[Tensor], Tensor]:
    """hidden states [tokens, hidden] -> [1, width]"""
    import torch

    from python_mp.sharding.families.heads import Embedding
    from python_mp.sharding.weights import Tensors

    weights = Tensors(layer_weights.read(checkpoint.path, task.layers), torch.float32)
    embedding = Embedding(task, weights)
    return lambda states: embedding.vectors(states, torch.tensor([0, len(states)]))


def _module(job: Job, folder: Path, requests: Sequence[dict[str, Array]]) -> Iterator[Outputs]:
    import torch

    from build_scripts.samples import packed
    from python_mp.rank.collectives.communicator import Alone
    from python_mp.sharding import source
    from python_mp.sharding.packed import Packed
    from python_mp.sharding.shard import Shard
    from python_mp.sharding.weights import Checkpoint

    cpu = torch.device("cpu")
    shard = Shard(
        rank=0,
        size=1,
        stage=0,
        stages=1,
        dtype=torch.float32,
        device=cpu,
        folder=folder,
        parameters=job.config.module_parameters,
        communicator=Alone(),
        given=Checkpoint(folder, torch.float32, cpu),
        inputs=job.config.batch_inputs,
        outputs=tuple(spec.name for spec in job.config.outputs),
    )
    model = source.read(job.folder)
    module = (model.whole or model.build)(shard).eval()
    for request in requests:
        results = module(Packed(packed(job.config, [request]), cpu), None)
        yield _arrays(job, results)


def _arrays(job: Job, made: object) -> Outputs:
    """With the batch dimension that packing took away from ragged outputs.

    Raises:
        BuildError: they are not those of config.pbtxt.
    """
    if not isinstance(made, dict):
        kind = type(made).__name__
        raise BuildError(f"the last stage must return {{output name: tensor}}, not a {kind}")
    for spec in job.config.outputs:
        if spec.name not in made:
            names = ", ".join(map(str, made)) or "nothing"
            raise BuildError(
                f"the module returned {names}, and not {spec.name}, which config.pbtxt has"
            )
    found = {spec: made[spec.name].numpy() for spec in job.config.outputs}
    return {spec.name: array[None] if spec.ragged else array for spec, array in found.items()}


if __name__ == "__main__":
    from build_scripts import command

    sys.exit(command.main("reference"))
