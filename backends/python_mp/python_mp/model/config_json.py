"""Parsed once: what Triton hands to `initialize` becomes a frozen `ModelConfig`, or is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import ragged_groups
from .config import InstanceGroup, ModelConfig, TensorSpec
from .errors import ConfigError
from .parameters import UNBUILT, Parameters, read
from .ragged_groups import CU_SEQLENS
from .unsupported import refuse

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
GRAPH_INPUTS = frozenset({"hidden", "hidden_out", "positions", "gather", "segments", "scatter"})
"""What compiled graphs get besides the model's own inputs."""


def parse(
    model_config: str, repository: str, version: str, engine: str = "", dtype: str = ""
) -> ModelConfig:
    """Parses Triton's `model_config` JSON, the model's repository path and the version loaded.

    Args:
        engine, dtype: of a version that was built; else `parameters` say them.

    Raises:
        ConfigError: a key is unknown, missing or out of range. The message names it.
    """
    raw = json.loads(model_config)
    refuse(raw)
    inputs = tuple(_tensor(item, raw.get("max_batch_size", 0)) for item in raw["input"])
    ragged = any(spec.ragged for spec in inputs)
    given = {key: item["string_value"] for key, item in raw.get("parameters", {}).items()}
    parameters = read(given, {"engine": engine, "dtype": dtype} if engine else {})
    _check_transaction(raw, parameters)
    outputs = tuple(_output(item, ragged, parameters) for item in raw["output"])
    groups = ragged_groups.read(parameters.lengths)
    config = ModelConfig(
        name=raw["name"],
        version=int(version),
        folder=Path(repository) / version,
        max_batch_size=raw["max_batch_size"],
        inputs=tuple(replace(s, group=ragged_groups.of(groups, s.name)) for s in inputs),
        outputs=tuple(replace(s, group=ragged_groups.of(groups, s.name)) for s in outputs),
        instance_groups=tuple(_instance_group(item) for item in raw["instance_group"]),
        parameters=parameters,
        module_parameters={
            key.removeprefix("module."): value
            for key, value in given.items()
            if key.startswith("module.")
        },
        queue_seconds=_queue_seconds(raw.get("dynamic_batching") or {}),
        source=(model_config, repository, version, engine, dtype),
        newest_versions=_newest_versions(raw.get("version_policy") or {}),
    )
    _check_lengths(config)
    _check_names(config)
    _check_devices(config)
    return config


def _check_transaction(raw: Mapping[str, Any], parameters: Parameters) -> None:
    decoupled = bool(raw.get("model_transaction_policy", {}).get("decoupled"))
    if decoupled == parameters.generates:
        return
    if decoupled:
        raise ConfigError(
            "the model is decoupled, which only models of task 'generate' are: others give one"
            " answer to a request"
        )
    raise ConfigError(
        "task 'generate' answers in parts: add `model_transaction_policy { decoupled: true }`"
    )


def _newest_versions(policy: Mapping[str, Any]) -> float:
    if "all" in policy or "specific" in policy:
        return math.inf
    return int((policy.get("latest") or {}).get("num_versions", 1))


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
    if ragged and dims[:1] != (-1,):
        raise ConfigError(f"input '{name}' has allow_ragged_batch, so its first dim must be -1")
    return TensorSpec(name, NUMPY_DTYPES[dtype], dims, ragged, bool(item.get("optional", False)))


def _output(item: dict[str, Any], has_ragged_input: bool, parameters: Parameters) -> TensorSpec:
    if parameters.generates and item["data_type"] == "TYPE_STRING":  # The front makes it.
        return TensorSpec(item["name"], "object", tuple(map(int, item["dims"])), False)
    spec = _tensor(item, 1)
    ragged = has_ragged_input and spec.dims[:1] == (-1,)
    return TensorSpec(spec.name, spec.dtype, spec.dims, ragged)


def _instance_group(item: dict[str, Any]) -> InstanceGroup:
    return InstanceGroup(
        name=item["name"],
        kind=item["kind"],
        count=int(item["count"]),
        gpus=tuple(item.get("gpus", ())),
        passive=bool(item.get("passive", False)),
    )


def _check_lengths(config: ModelConfig) -> None:
    if not config.parameters.lengths:
        return
    if not config.has_ragged_input:
        raise ConfigError("parameter 'lengths' needs an input with allow_ragged_batch")
    for name in (group.lengths for group in config.groups):
        if not any(s.name == name and s.dtype == "int32" and s.dims == (1,) for s in config.inputs):
            raise ConfigError(
                f"parameter 'lengths' names '{name}', which is no input TYPE_INT32 [1]"
            )
    tensors = (*config.inputs, *config.outputs)
    ragged, others = ([s.name for s in tensors if s.ragged is kind] for kind in (True, False))
    ragged_groups.check(config.groups, ragged, others)


def _check_names(config: ModelConfig) -> None:
    """Inputs share their names with what says where sequences lie."""
    compiled = config.parameters.engine not in UNBUILT
    taken = {CU_SEQLENS} if config.has_ragged_input else set()
    if compiled:
        taken |= GRAPH_INPUTS
    for spec in config.inputs:
        if spec.name in taken or spec.name.startswith(f"{CU_SEQLENS}:"):
            raise ConfigError(
                f"input '{spec.name}' has the name of a tensor that python_mp adds to each batch;"
                " name it otherwise"
            )


def _check_devices(config: ModelConfig) -> None:
    sizes = config.parameters
    for group in config.instance_groups:  # Triton fills in all GPUs that it sees.
        if group.kind == "KIND_GPU" and not group.gpus:
            raise ConfigError(
                f"instance group '{group.name}' is KIND_GPU, names no GPU, and there is none here:"
                " name those it is for, as in `gpus: [ 0, 1 ]`, or set `kind: KIND_CPU`"
            )
    on_gpus = any(group.kind == "KIND_GPU" for group in config.instance_groups)
    if on_gpus and sizes.engine == "onnxruntime":
        raise ConfigError(
            "engine 'onnxruntime' computes on the CPU: set `kind: KIND_CPU` in instance_group, or"
            " take another engine for GPUs"
        )
    if config.world_size == 1:
        return
    if sizes.collectives == "shm" and on_gpus:
        raise ConfigError("collectives 'shm' is for KIND_CPU; GPUs meet over 'nccl'")
    if sizes.collectives == "nccl" and not on_gpus:
        raise ConfigError("collectives 'nccl' is for KIND_GPU; CPU ranks meet over 'shm'")
    if sizes.collectives == "gloo" and on_gpus and sizes.pipeline_parallel_size > 1:
        raise ConfigError("collectives 'gloo' cannot hand on between stages on GPUs; take 'nccl'")
