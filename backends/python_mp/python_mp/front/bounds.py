"""Whether what a config allows can be carried: asked once, before ranks are started."""

from __future__ import annotations

import json
import os

from ..machine import cgroup
from ..model import decoders
from ..model.config import ModelConfig, TensorSpec
from ..model.errors import ConfigError
from ..model.sampling_parameters import MOST_BIASES
from ..wire.arena import ALIGN
from ..wire.message import MAX_TENSORS, described
from .schedule.block_pool import blocks_for

_MOST_CONFIG = 180_000
"""Bytes: what Linux lets a socket hold, by default, less the rest of a rank's order."""
_MOST_FRAME = 1 << 30
_A_STREAM, _STEP_TENSORS = 256, 16


def slots(config: ModelConfig) -> int:
    """Batches in flight: one a stage, and those that the first one has already, and the next."""
    return config.parameters.pipeline_parallel_size + config.depth


def half(config: ModelConfig) -> int:
    """Bytes for a batch's inputs, and for its outputs: with cu_seqlens (a sequence counts as at
    least one token of each group) and each tensor's alignment."""
    sizes, groups = config.parameters, len(config.groups)
    tensors = max(len(config.inputs) + groups, len(config.outputs))
    rows = sizes.max_batch_bytes + 4 * (sizes.max_batch_tokens + groups) + ALIGN * tensors
    return rows + (_streams(config) if sizes.generates else 0)


def _streams(config: ModelConfig) -> int:
    """Bytes of what steps of generation say of each stream: all its ids, where it has a penalty;
    its blocks; what is added to its logits; and how the next token is chosen."""
    context = decoders.read(config.folder).context_length
    a_stream = 4 * context + 4 * blocks_for(context) + 8 * MOST_BIASES + _A_STREAM
    return config.parameters.max_running_sequences * a_stream + ALIGN * _STEP_TENSORS


def admit(config: ModelConfig, memory: int | None = None) -> None:
    """
    Args:
        memory: bytes that there are; asked of the machine if not given.

    Raises:
        ConfigError: a single row would not fit, or there is too little memory for the batches.
    """
    _check_rows("inputs", config.inputs, config)
    _check_rows("outputs", config.outputs, config)
    _check_descriptions(config)
    _check_source(config)
    _check_hosts(config)
    _check_memory(config, memory or _memory())


def _check_rows(kind: str, specs: tuple[TensorSpec, ...], config: ModelConfig) -> None:
    row = sum(spec.row_nbytes for spec in specs if not spec.optional)
    most = config.parameters.max_batch_bytes
    if row > most:
        raise ConfigError(
            f"one row of the {kind} has {row} bytes, more than max_batch_bytes, {most}: no request"
            " would fit"
        )


def _check_descriptions(config: ModelConfig) -> None:
    """A batch is described to each rank in one message, and a slow stage may have some waiting."""
    for kind, specs in (("inputs", config.inputs), ("outputs", config.outputs)):
        nbytes = sum(described(spec.name, 1 + len(spec.row)) for spec in specs)
        most = MAX_TENSORS // config.parameters.pipeline_parallel_size
        if nbytes > most:
            raise ConfigError(
                f"the {len(specs)} {kind} take {nbytes} bytes to describe with each batch; at most"
                f" {most} can be sent: put several into one tensor, or shorten their names"
            )


def _check_source(config: ModelConfig) -> None:
    """Every rank is told the config in one message."""
    nbytes = len(json.dumps(config.source))
    if nbytes > _MOST_CONFIG:
        raise ConfigError(
            f"config.pbtxt makes {nbytes} bytes of JSON, of which ranks can be told {_MOST_CONFIG}:"
            " put what is large into a file of the version directory, which a module finds by"
            " shard.folder"
        )


def _check_hosts(config: ModelConfig) -> None:
    """What a batch has goes to another host as one frame, which is bounded there."""
    if config.parameters.hosts > 1 and half(config) > _MOST_FRAME:
        raise ConfigError(
            f"max_batch_bytes is {config.parameters.max_batch_bytes}; between hosts a batch may"
            f" take at most {_MOST_FRAME} bytes, with what says where its sequences lie: lower it"
        )


def _check_memory(config: ModelConfig, memory: int) -> None:
    needed = 2 * slots(config) * half(config)
    if needed > memory:
        raise ConfigError(
            f"{slots(config)} batches in flight of up to max_batch_bytes"
            f" {config.parameters.max_batch_bytes}, with as much for their outputs, would take"
            f" {needed} bytes; this machine, or its container, has {memory}: lower max_batch_bytes"
        )
    if config.parameters.max_queue_bytes > memory:
        raise ConfigError(
            f"max_queue_bytes is {config.parameters.max_queue_bytes}; this machine, or its"
            f" container, has {memory}: lower it, or the queue would never be full"
        )


def _memory() -> int:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, cgroup.memory() or machine)
