"""PyTorch modules: the built-in family of a checkpoint, or the user's own 1/module.py."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...batch import CU_SEQLENS, Array
from ...config import ModelConfig, TensorSpec
from ...errors import InvalidInput, LoadError, PythonMpError
from ...rank_spec import RankSpec
from ..collectives import Communicator, connect
from ..packed import Packed
from ..shard import Shard

log = logging.getLogger(__name__)


def load(spec: RankSpec) -> TorchEngine:
    """Raises LoadError when the module or its weights cannot be loaded."""
    torch.set_num_threads(spec.threads)
    torch.set_grad_enabled(False)
    device = torch.device("cpu" if spec.device < 0 else f"cuda:{spec.device}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    build = _builder(spec.config.folder)
    communicator = _connect(spec, device)
    shard = _shard(spec, device, communicator)
    module = build(shard).eval()
    shard.close_weights()
    engine = TorchEngine(module, shard, spec.config.outputs)
    _warm_up(engine, spec.config)
    return engine


class TorchEngine:
    """Runs one stage's module, and hands what it returns to the next stage or back."""

    def __init__(self, module: nn.Module, shard: Shard, outputs: tuple[TensorSpec, ...]) -> None:
        self._module = module
        self._shard = shard
        self._outputs = outputs if shard.is_last and shard.rank == 0 else ()
        self._check = getattr(module, "check", None)

    @torch.inference_mode()
    def forward(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        batch = Packed(inputs, self._shard.device)
        if self._check:
            self._check(batch)
        communicator = self._shard.communicator
        hidden = None if self._shard.is_first else communicator.receive()
        result = self._module(batch, hidden)
        if not self._shard.is_last:
            communicator.send(result.contiguous())
        return {spec.name: _output(result, spec) for spec in self._outputs}

    def waited_ns(self) -> int:
        return int(self._shard.communicator.wait_seconds() * 1e9)

    def close(self) -> None:
        self._shard.communicator.close()


def _warm_up(engine: TorchEngine, config: ModelConfig) -> None:
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
        engine.forward(zeros)
    except InvalidInput:
        pass
    except PythonMpError:
        raise
    except Exception as error:
        raise LoadError(
            f"the module raised {type(error).__name__} for a batch of zeros: {error}"
        ) from error


def _output(result: Mapping[str, Tensor], spec: TensorSpec) -> Array:
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
        dtype=getattr(torch, config.parameters.dtype),
        device=device,
        folder=config.folder,
        parameters=config.module_parameters,
        communicator=communicator,
    )


def _builder(folder: Path) -> Callable[[Shard], nn.Module]:
    if (folder / "module.py").exists():
        return _user_module(folder / "module.py")
    if (folder / "config.json").exists():
        from .. import encoder

        return encoder.build
    raise LoadError(f"{folder} holds neither module.py nor a checkpoint's config.json")


def _user_module(path: Path) -> Callable[[Shard], nn.Module]:
    spec = importlib.util.spec_from_file_location("module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise LoadError(f"{path} raised {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "build", None)):
        raise LoadError(f"{path} has no function build(shard); see README, bring your own model")
    build: Callable[[Shard], nn.Module] = module.build
    return build
