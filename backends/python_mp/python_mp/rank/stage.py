"""One rank's stage of the model, whatever computes it: what all engines but echo have in common."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ..model.batch import CU_SEQLENS, Array, check_output
from ..model.config import ModelConfig, TensorSpec
from ..model.errors import InvalidInput, LoadError, PythonMpError, RequestFailed
from ..model.manifest import Manifest, check_hardware
from ..model.rank_spec import RankSpec
from ..sharding.packed import Packed
from ..sharding.shard import Shard
from .collectives import Communicator, connect

log = logging.getLogger(__name__)

Compute = Callable[[Packed, Tensor | None], Tensor | Mapping[str, Tensor]]
"""(batch, what the stage before returned) -> what the next one gets, or the outputs by name."""
COMPUTE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,  # What is not quantised.
    "fp8": torch.float16,
}


class Stage:
    """Checks a batch, receives from the stage before, computes, and hands on or answers."""

    def __init__(self, shard: Shard, compute: Compute, outputs: tuple[TensorSpec, ...]) -> None:
        self._shard = shard
        self._compute = compute
        self._outputs = outputs if shard.is_last and shard.rank == 0 else ()
        self._check = shard.source.check
        self._begun_at, self._checked = 0, False
        self.phases: dict[str, float] = {}

    @classmethod
    def load(cls, spec: RankSpec, engine: Callable[[Shard], Compute]) -> Stage:
        """Joins the other ranks and loads what `engine(shard)` makes.

        Raises:
            LoadError: it cannot be loaded, or failed at a batch of zeros.
        """
        torch.set_num_threads(spec.threads)
        torch.set_grad_enabled(False)
        device = torch.device("cpu" if spec.device < 0 else f"cuda:{spec.device}")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        _check_hardware(spec.config, device)
        times = [time.monotonic()]
        communicator = _connect(spec, device)
        times.append(time.monotonic())
        shard = _shard(spec, device, communicator)
        stage = cls(shard, engine(shard), spec.config.outputs)
        times.append(time.monotonic())
        _warm_up(stage, spec.config)
        times.append(time.monotonic())
        names = ("rendezvous", "load", "warm_up")
        stage.phases = {n: b - a for n, a, b in zip(names, times, times[1:], strict=False)}
        return stage

    @torch.inference_mode()
    def forward(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        communicator = self._shard.communicator
        self._begun_at, self._checked = communicator.operations(), False
        alone = self._shard.size * self._shard.stages == 1
        batch = Packed(inputs, self._shard.device, shared=not alone)
        if self._check:
            self._check(batch)
        self._checked = True
        hidden = None if self._shard.is_first else communicator.receive()
        result = self._compute(batch, hidden)
        if self._shard.is_last:
            return {spec.name: _output(result, spec) for spec in self._outputs}
        if not isinstance(result, Tensor):
            raise LoadError("a stage that is not the last must return the tensor to hand on")
        communicator.send(result.contiguous())
        return {}

    def is_apart(self) -> bool:
        """Later stages wait for the one before from the moment that they have checked the batch."""
        if self._shard.stages > 1 and self._checked:
            return False
        return self._shard.communicator.operations() == self._begun_at

    def waited_ns(self) -> int:
        return int(self._shard.communicator.wait_seconds() * 1e9)

    def close(self) -> None:
        del self._compute
        self._shard.communicator.close()


def _check_hardware(config: ModelConfig, device: torch.device) -> None:
    """Raises LoadError where the artifact was built for another GPU or other libraries."""
    manifest = Manifest.read(config.folder)
    if manifest and manifest.engine != "tensorrt":  # It knows the library's version, and checks.
        present = gpu(device) if device.type == "cuda" else None
        check_hardware(manifest, torch_version=torch.__version__, gpu=present)


def gpu(device: torch.device | None = None) -> dict[str, str]:
    """`name` and `compute_capability` ("9.0") of a GPU, by default the current one."""
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return {"name": name, "compute_capability": f"{major}.{minor}"}


def _warm_up(stage: Stage, config: ModelConfig) -> None:
    """One batch of zeros, so that a module or weights of the wrong shape fail the load and the
    first request is no slower than others.

    Raises:
        LoadError: the module raised. That its `check` refuses zeros is all right.
    """
    zeros = {
        spec.name: np.zeros([1, *(abs(dim) for dim in spec.dims[spec.ragged :])], spec.dtype)
        for spec in config.inputs
        if not spec.optional and spec.name != config.parameters.lengths
    }
    if config.has_ragged_input:
        zeros[CU_SEQLENS] = np.array([0, 1], np.int32)
    try:
        outputs = stage.forward(zeros)
        for spec in config.outputs if outputs else ():
            check_output(outputs, spec, 1)
            _compare(spec, outputs[spec.name].shape[1:])
    except InvalidInput:
        pass
    except RequestFailed as error:
        raise LoadError(f"of a batch of zeros: {error}") from None
    except PythonMpError:
        raise
    except Exception as error:
        raise LoadError(
            f"the module raised {type(error).__name__} for a batch of zeros: {error}"
        ) from error


def _compare(spec: TensorSpec, row: tuple[int, ...]) -> None:
    if any(want not in (-1, size) for want, size in zip(spec.row, row, strict=True)):
        log.warning(
            "output '%s' has rows of shape %s; config.pbtxt says %s, which Triton tells clients",
            *(spec.name, list(row), list(spec.row)),
        )


def _output(result: Tensor | Mapping[str, Tensor], spec: TensorSpec) -> Array:
    if isinstance(result, Tensor):
        raise LoadError("the last stage must return {output name: tensor}, not a tensor")
    if spec.name not in result:
        raise LoadError(f"the module returned {sorted(result)}, but no output '{spec.name}'")
    wanted = getattr(torch, spec.dtype)
    array: Array = result[spec.name].to("cpu", wanted).contiguous().numpy()
    return array


def _connect(spec: RankSpec, device: torch.device) -> Communicator:
    sizes = spec.config.parameters
    return connect(
        sizes.collectives,
        tensor_rank=spec.tensor_rank,
        tensor_size=sizes.tensor_parallel_size,
        stage=spec.stage,
        stages=sizes.pipeline_parallel_size,
        region=f"/proc/self/fd/{spec.region_fd}",
        store=spec.store,
        device=device,
    )


def _shard(spec: RankSpec, device: torch.device, communicator: Communicator) -> Shard:
    config = spec.config
    return Shard(
        rank=spec.tensor_rank,
        size=config.parameters.tensor_parallel_size,
        stage=spec.stage,
        stages=config.parameters.pipeline_parallel_size,
        dtype=COMPUTE_DTYPES[config.parameters.dtype],
        device=device,
        folder=config.folder,
        parameters=config.module_parameters,
        communicator=communicator,
    )
