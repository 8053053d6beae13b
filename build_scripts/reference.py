"""What the outputs should be: the model in one piece, in float32, in PyTorch.

Encoders are judged by Hugging Face's own implementation, a user's module by itself on one rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from build_scripts import fetch
from build_scripts.job import Job
from build_scripts.samples import packed
from python_mp.batch import Array
from python_mp.rank import source
from python_mp.rank.collectives.communicator import Alone
from python_mp.rank.packed import Packed
from python_mp.rank.shard import Shard
from python_mp.rank.weights import Checkpoint

CPU = torch.device("cpu")
Outputs = dict[str, Array]


@torch.inference_mode()
def outputs(job: Job, requests: Sequence[dict[str, Array]]) -> list[Outputs]:
    """Each request's outputs, float32, with their batch dimension."""
    folder = fetch.read(job).folder
    if job.recipe.family == "encoder":
        return _encoder(folder, requests)
    return _module(job, folder, requests)


def _encoder(folder: Path, requests: Sequence[dict[str, Array]]) -> list[Outputs]:
    with warnings.catch_warnings(action="ignore"):
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    ids = (torch.from_numpy(request["INPUT_IDS"]).long() for request in requests)
    return [{"HIDDEN_STATES": model(each).last_hidden_state.numpy()} for each in ids]


def _module(job: Job, folder: Path, requests: Sequence[dict[str, Array]]) -> list[Outputs]:
    shard = Shard(
        rank=0,
        size=1,
        stage=0,
        stages=1,
        dtype=torch.float32,
        device=CPU,
        folder=folder,
        parameters=job.config.module_parameters,
        communicator=Alone(),
        given=Checkpoint(folder, torch.float32, CPU),
    )
    module = source.read(job.output("shard")).build(shard).eval()
    results = (module(Packed(packed(job.config, [each]), CPU), None) for each in requests)
    return [{name: _array(job, name, value) for name, value in each.items()} for each in results]


def _array(job: Job, name: str, value: Tensor) -> Array:
    """With the batch dimension that packing took away from a ragged output."""
    ragged = next(spec.ragged for spec in job.config.outputs if spec.name == name)
    array: Array = value.numpy()
    return array[None] if ragged else array
