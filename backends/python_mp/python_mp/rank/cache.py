"""The cache of keys and values of a stage that generates: how large it is, and its first steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..model import layout
from ..model.config import ModelConfig
from ..model.errors import InvalidInput, LoadError, PythonMpError
from ..model.request import Array
from ..sharding.paged import BLOCK
from ..sharding.running import KvCache
from .device import Device

Forward = Callable[[Mapping[str, Array]], Mapping[str, Array]]
SHARE = {"cpu": 0.25, "cuda": 0.9}
"""Of the memory that is free once the weights are there. A processor's is others' as well, and is
taken only as blocks are written: what looks free then may be promised to another cache."""
MOST = 1 << 16
"""Blocks that are taken of themselves: a million tokens. The front keeps a list of them."""
ROWS = 2
"""Of the batch that tells what layers keep."""


def open_cache(forward: Forward, cache: KvCache, config: ModelConfig, device: Device) -> None:
    """Learns what the layers keep, takes the blocks, and computes a first prefill and decode.

    Raises:
        LoadError: the module cannot generate, or not a single block fits the memory.
    """
    try:
        forward(_step(ROWS, None))
        cache.open(_blocks(cache, config, device), device.place)
        forward(_step(ROWS, ROWS))
        forward(_step(1, ROWS + 1))
    except InvalidInput as error:
        raise LoadError(f"of a first step of {ROWS} tokens: {error}") from None
    except PythonMpError:
        raise
    except Exception as error:
        text = f"the module raised {type(error).__name__} for a first step: {error}"
        raise LoadError(text) from error


def _blocks(cache: KvCache, config: ModelConfig, device: Device) -> int:
    if said := config.parameters.kv_cache_blocks:
        return said
    free = device.free_nbytes() * SHARE[device.place.type] / _sharers(config, device)
    if free < cache.block_nbytes:
        raise LoadError(
            f"{free / 1e6:.0f} MB of memory are left for this rank's cache of keys and values, and"
            f" a block of {BLOCK} tokens takes {cache.block_nbytes / 1e6:.1f} MB"
        )
    return min(MOST, int(free / cache.block_nbytes))


def _sharers(config: ModelConfig, device: Device) -> int:
    """Ranks of the model that take of the same memory, this one included."""
    index = layout.CPU if device.place.index is None else device.place.index
    places = [rank.instance.device for each in layout.replicas(config) for rank in each.ranks]
    return max(1, places.count(index))


def _step(rows: int, context: int | None) -> dict[str, Array]:
    """Of one sequence, whose last row is followed by the likeliest token."""
    none, ints = np.zeros(0, np.int32), np.zeros(1, np.int32)
    step: dict[str, Array] = {
        "INPUT_IDS": np.zeros(rows, np.int32),
        "cu_seqlens": np.array([0, rows], np.int32),
        "sampled": ints,
        "sampling": np.array([[0, 1, 0, 0, 0, 1, 0]], np.float32),
        "sampling_ints": np.array([[0, 0, 0, -1]], np.int64),
        "history": none,
        "history_cu": np.zeros(2, np.int32),
        "history_prompt": ints,
        "bias_ids": none,
        "bias_values": np.zeros(0, np.float32),
        "bias_cu": np.zeros(2, np.int32),
    }
    if context is not None:
        step |= {"context_lengths": np.array([context], np.int32), "block_table": ints[None]}
    return step
