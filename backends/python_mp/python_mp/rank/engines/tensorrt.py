"""TensorRT plans, one a rank: `model.plan`, or `model.plan.rankR` where a model has several."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...model.admission import check_hardware
from ...model.errors import LoadError
from ...model.manifest import Manifest, rank_file
from ...model.rank_spec import RankSpec
from ...sharding.packed import HIDDEN_OUT, Packed
from ...sharding.shard import Shard
from ...sharding.source import Source
from ..collectives.distributed import Distributed
from ..cuda import gpu
from ..stage import Stage
from .tensorrt_api import library
from .tensorrt_graph import CUDA_GRAPHS, TensorRtGraph
from .tensorrt_plan import Plan, communicator


def load(spec: RankSpec) -> Stage:
    """Raises LoadError when TensorRT, the GPU or the plan is missing, or they do not fit."""
    return Stage.load(spec, partial(_plan, spec.config.parameters.max_batch_tokens))


def _plan(limit: int, shard: Shard, _: Source) -> TensorRtStage:
    return TensorRtStage(shard, limit)


class TensorRtStage:
    """One rank's plan, and what a batch must give it; batches have up to `limit` rows."""

    def __init__(self, shard: Shard, limit: int) -> None:
        if shard.device.type != "cuda":
            raise LoadError("Engine tensorrt runs on GPUs: set `kind: KIND_GPU` in instance_group.")
        self._plan = Plan(
            plan_path(shard.folder, shard.world_rank, shard.size * shard.stages),
            weights=shard.folder / f"rank{shard.world_rank}.onnx",
            host_code=_checked(shard),
        )
        if (largest := self._plan.largest_batch) < limit:
            raise LoadError(
                f"{shard.folder} has plans for batches of up to {largest} rows: set the parameter"
                f" max_batch_tokens to that, which is {limit}, or widen `shapes` in recipe.toml and"
                " build again."
            )
        self._graph = TensorRtGraph(
            self._plan,
            shard.device,
            _communicator(shard),
            # Capturing the collectives of several GPUs is untried; Triton's own backend does not.
            CUDA_GRAPHS if shard.size == 1 else 0,
        )

    def __call__(self, batch: Packed, hidden: Tensor | None) -> Tensor | dict[str, Tensor]:
        outputs = self._graph(batch.graph_inputs(self._plan.inputs, hidden))
        return outputs.get(HIDDEN_OUT, outputs)


def plan_path(folder: Path, rank: int, world_size: int) -> Path:
    """The plan's file in a version directory, named so that Triton's own backend finds it too."""
    return folder / rank_file("tensorrt", rank, world_size)


def _communicator(shard: Shard) -> object:
    if shard.size == 1:
        return None
    if not isinstance(shard.communicator, Distributed):
        raise LoadError(
            "Engine tensorrt runs its collectives inside the plan, by NCCL: set the parameter"
            " `collectives` to nccl or leave it out."
        )
    return communicator(shard.communicator.group, shard.device)


def _checked(shard: Shard) -> bool:
    """Whether the plan may hold code for the CPU; raises LoadError if it is for another machine."""
    manifest = Manifest.read(shard.folder)
    if manifest is None:
        return False
    check_hardware(
        manifest,
        torch_version=torch.__version__,
        gpu=gpu(shard.device),
        tensorrt=library().__version__,
    )
    return bool(manifest.options.get("version_compatible"))
