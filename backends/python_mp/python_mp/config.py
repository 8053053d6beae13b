"""config.pbtxt, parsed once: what Triton hands to `initialize` becomes a frozen `ModelConfig`."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import ConfigError

NUMPY_DTYPES = {
    "TYPE_BOOL": "bool",
    "TYPE_UINT8": "uint8",
    "TYPE_INT8": "int8",
    "TYPE_INT16": "int16",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
}
ENGINES = ("echo", "torch", "aot_inductor", "onnxruntime", "tensorrt")
DTYPES = ("float32", "bfloat16", "float16", "int8", "fp8")
COLLECTIVES = ("auto", "shm", "gloo", "nccl")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `dims` is without the batch dimension; -1 is a dimension of any size.

    A ragged tensor's first dimension differs from request to request: its rows are packed end to
    end instead of being padded. Inputs say so by `allow_ragged_batch`; an output is ragged when its
    first dimension is -1 and the model has a ragged input.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    ragged: bool
    optional: bool = False


@dataclass(frozen=True)
class InstanceGroup:
    """One entry of `instance_group`."""

    name: str
    kind: str
    count: int
    gpus: tuple[int, ...]
    passive: bool


@dataclass(frozen=True)
class Parameters:
    """`parameters` of config.pbtxt, by the names used there."""

    engine: str
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    dtype: str = "float32"
    collectives: str = "auto"
    lengths: str = ""
    max_batch_tokens: int = 4096
    max_batch_bytes: int = 64 << 20
    max_queue_requests: int = 4096
    max_queue_bytes: int = 256 << 20
    hang_seconds: int = 10
    forward_timeout_seconds: int = 0
    threads_per_rank: int = 0
    start_timeout_seconds: int = 120


@dataclass(frozen=True)
class ModelConfig:
    """A model as its config.pbtxt describes it.

    `folder` is the version directory; `module_parameters` are the parameters written `module.KEY`,
    handed to the user's `module.py` as they are; `queue_seconds` is how long a request may wait at
    most (`default_timeout_microseconds` of the `default_queue_policy`), infinite if not said.
    """

    name: str
    version: int
    folder: Path
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    instance_groups: tuple[InstanceGroup, ...]
    parameters: Parameters
    module_parameters: Mapping[str, str]
    queue_seconds: float
    source: tuple[str, str, str]
    """The arguments of `parse` that made this, so that a rank can make it again."""

    @property
    def world_size(self) -> int:
        """Ranks in one replica."""
        return self.parameters.tensor_parallel_size * self.parameters.pipeline_parallel_size

    @cached_property
    def has_ragged_input(self) -> bool:
        return any(spec.ragged for spec in self.inputs)


def parse(model_config: str, repository: str, version: str) -> ModelConfig:
    """Parses Triton's `model_config` JSON, the model's repository path and the version loaded.

    Raises:
        ConfigError: a key is unknown, missing or out of range. The message names it.
    """
    raw = json.loads(model_config)
    inputs = tuple(_tensor(item, raw.get("max_batch_size", 0)) for item in raw["input"])
    ragged = any(spec.ragged for spec in inputs)
    given = {key: item["string_value"] for key, item in raw.get("parameters", {}).items()}
    config = ModelConfig(
        name=raw["name"],
        version=int(version),
        folder=Path(repository) / version,
        max_batch_size=raw["max_batch_size"],
        inputs=inputs,
        outputs=tuple(_output(item, ragged) for item in raw["output"]),
        instance_groups=tuple(_instance_group(item) for item in raw["instance_group"]),
        parameters=_parameters(given),
        module_parameters={
            key.removeprefix("module."): value
            for key, value in given.items()
            if key.startswith("module.")
        },
        queue_seconds=_queue_seconds(raw.get("dynamic_batching") or {}),
        source=(model_config, repository, version),
    )
    _check_lengths(config)
    return config


def _queue_seconds(dynamic_batching: Mapping[str, Any]) -> float:
    policy = dynamic_batching.get("default_queue_policy", {})
    given = int(policy.get("default_timeout_microseconds", 0))
    return given / 1e6 if given and policy.get("timeout_action", "REJECT") == "REJECT" else math.inf


def _tensor(item: dict[str, Any], max_batch_size: int) -> TensorSpec:
    name, dtype = item["name"], item["data_type"]
    if max_batch_size < 1:
        raise ConfigError("max_batch_size must be at least 1: python_mp forms its own batches")
    if dtype not in NUMPY_DTYPES:
        raise ConfigError(
            f"tensor '{name}' is {dtype}; python_mp carries {', '.join(NUMPY_DTYPES)}: "
            "turn anything else into numbers in a step before it"
        )
    dims = tuple(int(dim) for dim in item["dims"])
    ragged = bool(item.get("allow_ragged_batch", False))
    if ragged and dims[0] != -1:
        raise ConfigError(f"input '{name}' has allow_ragged_batch, so its first dim must be -1")
    return TensorSpec(name, NUMPY_DTYPES[dtype], dims, ragged, bool(item.get("optional", False)))


def _output(item: dict[str, Any], has_ragged_input: bool) -> TensorSpec:
    spec = _tensor(item, 1)
    ragged = has_ragged_input and spec.dims[0] == -1
    return TensorSpec(spec.name, spec.dtype, spec.dims, ragged)


def _instance_group(item: dict[str, Any]) -> InstanceGroup:
    return InstanceGroup(
        name=item["name"],
        kind=item["kind"],
        count=int(item["count"]),
        gpus=tuple(item.get("gpus", ())),
        passive=bool(item.get("passive", False)),
    )


def _parameters(given: Mapping[str, str]) -> Parameters:
    known = {key: value for key, value in given.items() if not key.startswith("module.")}
    for key in known:
        if key not in _READERS:
            close = difflib.get_close_matches(key, _READERS, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(_READERS)}"
            raise ConfigError(f"unknown parameter '{key}'{hint}")
    if "engine" not in known:
        raise ConfigError(f"parameter 'engine' is missing; one of {', '.join(ENGINES)}")
    return Parameters(**{key: _READERS[key](key, value) for key, value in known.items()})


def _one_of(*allowed: str) -> Callable[[str, str], str]:
    def read(key: str, value: str) -> str:
        if value not in allowed:
            raise ConfigError(f"parameter '{key}' is '{value}'; one of {', '.join(allowed)}")
        return value

    return read


def _at_least(minimum: int) -> Callable[[str, str], int]:
    def read(key: str, value: str) -> int:
        if not value.isdecimal() or int(value) < minimum:
            raise ConfigError(
                f"parameter '{key}' is '{value}'; it must be a whole number, at least {minimum}"
            )
        return int(value)

    return read


_READERS: dict[str, Callable[[str, str], Any]] = {
    "engine": _one_of(*ENGINES),
    "tensor_parallel_size": _at_least(1),
    "pipeline_parallel_size": _at_least(1),
    "dtype": _one_of(*DTYPES),
    "collectives": _one_of(*COLLECTIVES),
    "lengths": lambda _, value: value,
    "max_batch_tokens": _at_least(1),
    "max_batch_bytes": _at_least(1 << 10),
    "max_queue_requests": _at_least(1),
    "max_queue_bytes": _at_least(1 << 10),
    "hang_seconds": _at_least(0),
    "forward_timeout_seconds": _at_least(0),
    "threads_per_rank": _at_least(1),
    "start_timeout_seconds": _at_least(1),
}


def _check_lengths(config: ModelConfig) -> None:
    name = config.parameters.lengths
    if not name:
        return
    if not config.has_ragged_input:
        raise ConfigError("parameter 'lengths' needs an input with allow_ragged_batch")
    if not any(s.name == name and s.dtype == "int32" and s.dims == (1,) for s in config.inputs):
        raise ConfigError(f"parameter 'lengths' names '{name}', which is no input TYPE_INT32 [1]")
