"""One rank's stage of the model, whatever computes it: what all engines but echo have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..model import decoders
from ..model.admission import check_hardware
from ..model.config import ModelConfig, TensorSpec
from ..model.errors import InvalidInput, LoadError, RequestFailed
from ..model.manifest import Manifest
from ..model.parameters import UNBUILT
from ..model.rank_spec import RankSpec
from ..model.request import Array
from ..sharding.packed import Packed
from ..sharding.running import KvCache, Running
from ..sharding.shard import Shard
from ..sharding.source import Source, read
from .cache import capture_steps, most_running, open_cache
from .collectives import Communicator, connect
from .control_store import ControlStore
from .device import CPU, CudaDevice, Device, Landing, of_index
from .graphs import Given, Graphs
from .handover import Handover, Hidden
from .static_rows import StaticRows, possible
from .static_steps import StaticSteps
from .warm_up import capture_batches, warm_up

Compute = Callable[[Packed, Any], Hidden]
"""(batch, what the stage before returned) -> what the next one gets, or the outputs by name."""
COMPUTE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,  # What is not quantised.
    "int8_dynamic": torch.float32,
    "fp8": torch.float16,
}


class Stage:
    """Checks a batch, receives from the stage before, computes, and hands on or answers."""

    def __init__(
        self,
        shard: Shard,
        device: Device,
        compute: Compute,
        source: Source,
        outputs: tuple[TensorSpec, ...],
        cache: KvCache | None = None,
    ) -> None:
        self._shard = shard
        self._device = device
        self._compute = compute
        self._check = source.check
        answers = shard.is_last and shard.rank == 0
        self._outputs = outputs if answers else ()
        self._cache, self._answers = cache, answers
        self._finish = source.finish(shard) if answers and source.finish else None
        self._begun_at, self._checked = 0, False
        alone = shard.size * shard.stages == 1
        self._is_shared = not alone or device.place != CPU  # A GPU's has its own copy.
        self._before, self._behind = (Handover(shard.communicator, shard.device) for _ in range(2))
        self.phases: dict[str, float] = {}
        self.padded = 0
        self.blocks = 0
        self._is_compiled = False
        self._graphs: Graphs[Any] | None = None

    @classmethod
    def load(cls, spec: RankSpec, engine: Callable[[Shard, Source], Compute]) -> Stage:
        """Joins the other ranks and loads what `engine(shard, source)` makes.

        Raises:
            LoadError: it cannot be loaded, or failed at a batch of zeros.
        """
        torch.set_num_threads(spec.threads)
        torch.set_grad_enabled(False)
        tf32 = spec.config.parameters.float32_products == "tf32"
        device = of_index(spec.device, alone=spec.world_size == 1, tf32=tf32)
        manifest = Manifest.read(spec.config.folder)
        if manifest:
            _check_hardware(manifest, device)
        times = [time.monotonic()]
        communicator = _connect(spec, device.place)
        times.append(time.monotonic())
        shard = _shard(spec, device.place, communicator)
        source = read(shard.folder)
        compute = engine(shard, source)
        cache = KvCache() if source.generates else None
        stage = cls(shard, device, compute, source, spec.config.outputs, cache)
        stage._is_compiled = spec.config.parameters.engine not in UNBUILT
        times.append(time.monotonic())
        if cache is not None:
            open_cache(stage.forward, cache, spec.config, device)
            if not isinstance(device, CudaDevice):
                capture_steps(stage.forward, compute, spec.config)
            stage.blocks = cache.blocks
        else:
            warm_up(stage.forward, spec.config, manifest.sample_dims if manifest else {})
            capture_batches(stage.forward, compute, spec.config)
        stage._use_graphs(spec.config)
        times.append(time.monotonic())
        names = ("rendezvous", "load", "warm_up")
        stage.phases = {n: b - a for n, a, b in zip(names, times, times[1:], strict=False)}
        return stage

    @property
    def depth(self) -> int:
        """Batches that may be begun before the first one has landed."""
        return self._device.depth

    def forward(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return self.begin(inputs)()

    @torch.inference_mode()
    def begin(self, inputs: Mapping[str, Array]) -> Landing:
        communicator = self._shard.communicator
        self._begun_at, self._checked = communicator.operations(), False
        host = self._on_host(inputs)
        if self._is_compiled and host.is_ragged and not any(host.lengths):
            raise InvalidInput("the sequences are empty, so that there is nothing to compute")
        if self._check:
            self._check(host)
        self._checked = True
        try:
            return self._device.fetch(self._outputs_of(inputs, host))
        except torch.OutOfMemoryError as error:
            self._device.give_back()
            raise RequestFailed(f"the GPU has too little memory for the batch: {error}") from None

    @torch.inference_mode()
    def improve(self) -> bool:
        """Does a part of what makes later batches faster; False where there is nothing to do."""
        return self._graphs is not None and self._graphs.improve()

    def _outputs_of(self, inputs: Mapping[str, Array], host: Packed) -> Mapping[str, Tensor]:
        made = self._graphs.run(Given(inputs, host)) if self._graphs else None
        if made is not None and self._cache is None:
            return made
        batch = self._device.take(inputs, host)
        found: Hidden | None = made
        if found is None:
            hidden = None if self._shard.is_first else self._before.receive()
            found = self._compute(batch, hidden)
        self.padded = batch.padded
        if self._shard.is_last:
            return self._answer(batch, found)
        self._behind.send(found)
        return {}

    def _on_host(self, inputs: Mapping[str, Array]) -> Packed:
        if self._cache is None:
            return Packed(inputs, CPU, shared=self._is_shared)
        return Running(inputs, CPU, self._cache, shared=self._is_shared)

    def _use_graphs(self, config: ModelConfig) -> None:
        """Where the stage is the whole model, on a GPU."""
        device = self._device
        if not isinstance(device, CudaDevice) or not possible(config):
            return
        if self._cache is None:
            rows = StaticRows(device.cuda, config, self._check)
            self._graphs = Graphs(device.cuda, rows, self._all_of_it, device.take)
        else:
            most, longest = most_running(config), decoders.read(config.folder).context_length
            steps = StaticSteps(device.cuda, self._cache, most, longest)
            self._graphs = Graphs(device.cuda, steps, self._logits, device.take)

    def _all_of_it(self, batch: Packed) -> Mapping[str, Tensor]:
        return self._answer(batch, self._compute(batch, None))

    def _logits(self, batch: Packed) -> Mapping[str, Tensor]:
        """What tokens are chosen from, as each sequence's client asks for."""
        found = self._compute(batch, None)
        assert isinstance(found, Mapping)
        return found

    def is_apart(self) -> bool:
        """Later stages wait for the one before from the moment that they have checked the batch."""
        if self._shard.stages > 1 and self._checked:
            return False
        return self._shard.communicator.operations() == self._begun_at

    def _answer(self, batch: Packed, result: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if isinstance(result, Tensor):
            raise LoadError("the last stage must return {output name: tensor}, not a tensor")
        if self._finish:
            result = self._finish(batch, result)
        if self._cache is not None:
            return result if self._answers else {}
        return {spec.name: self._output(result, spec) for spec in self._outputs}

    def _output(self, result: Mapping[str, Tensor], spec: TensorSpec) -> Tensor:
        if spec.name not in result:
            raise LoadError(f"the module returned {sorted(result)}, but no output '{spec.name}'")
        output: Tensor = result[spec.name].to(getattr(torch, spec.dtype))
        return output

    def waited_ns(self) -> int:
        return int(self._shard.communicator.wait_seconds() * 1e9)

    def close(self) -> None:
        del self._compute
        self._shard.communicator.close()


def _check_hardware(manifest: Manifest, device: Device) -> None:
    """Raises LoadError where the artifact was built for another GPU or other libraries."""
    if manifest.engine != "tensorrt":  # It knows the library's version, and checks.
        check_hardware(manifest, torch_version=torch.__version__, gpu=device.describe())


def _connect(spec: RankSpec, device: torch.device) -> Communicator:
    sizes = spec.config.parameters
    return connect(
        sizes.collectives,
        tensor_rank=spec.tensor_rank,
        tensor_size=sizes.tensor_parallel_size,
        stage=spec.stage,
        stages=sizes.pipeline_parallel_size,
        region=f"/proc/self/fd/{spec.region_fd}",
        store=ControlStore(spec.control_fd) if sizes.hosts > 1 else spec.store,
        hosts=sizes.hosts,
        address=spec.address,
        device=device,
        hang_seconds=sizes.hang_seconds,
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
        inputs=config.batch_inputs,
        outputs=tuple(spec.name for spec in config.outputs),
    )
