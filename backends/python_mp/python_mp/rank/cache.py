"""The cache of keys and values of a stage that generates: how large it is, and its first steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..model import decoders, layout
from ..model.config import ModelConfig
from ..model.errors import InvalidInput, LoadError, PythonMpError
from ..model.request import Array
from ..sharding.kv_pages import BLOCK
from ..sharding.running import KvCache
from .capturing import Forward, capture
from .device import CudaDevice, Device

SHARE = {"cpu": 0.25, "cuda": 0.9}
"""Of the memory that is free once the weights are there. A processor's is others' as well, and is
taken only as blocks are written: what looks free then may be promised to another cache."""
MOST = 1 << 16
"""Blocks that are taken of themselves: a million tokens. The front keeps a list of them."""
MOST_CAPTURED = 512
"""Rows of a step that is replayed: memory is taken for so many."""
FAR = 4096
"""Tokens of the longest context in steps that are captured or checked."""
ROWS = 2
"""Of each sequence of the batch that tells what layers keep."""


def open_cache(forward: Forward, cache: KvCache, config: ModelConfig, device: Device) -> None:
    """Learns what the layers keep, takes the blocks, and computes a first prefill and decode.

    Raises:
        LoadError: the module cannot generate, or not a single block fits the memory.
    """
    is_gpu = isinstance(device, CudaDevice)
    # On a GPU the largest one, so that what is free behind it is free whatever comes.
    most = config.parameters.max_batch_tokens // ROWS if is_gpu else 1
    try:
        forward(_step(most, ROWS, config))
        cache.open(_blocks(cache, config, device), device.place, spare=int(is_gpu))
        if is_gpu:
            forward(_step(most, ROWS, config, ROWS))
        forward(_step(1, ROWS, config, ROWS))
        forward(_step(1, 1, config, ROWS + 1))
    except InvalidInput as error:
        raise LoadError(f"of a first step of {ROWS} tokens: {error}") from None
    except PythonMpError:
        raise
    except Exception as error:
        text = f"the module raised {type(error).__name__} for a first step: {error}"
        raise LoadError(text) from error


def capture_steps(forward: Forward, module: object, config: ModelConfig) -> None:
    """Of sequences of one row."""

    def step(lengths: Sequence[int]) -> Mapping[str, Array]:
        longest = decoders.read(config.folder).context_length
        return _step(len(lengths), 1, config, min(longest, FAR))

    capture(forward, module, min(config.parameters.max_batch_tokens, MOST_CAPTURED), step)


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
    places = [rank.instance.device for each in layout.replicas(config) for rank in each.here]
    return max(1, places.count(index))


def most_running(config: ModelConfig) -> int:
    """Sequences of a step."""
    sizes = config.parameters
    return min(sizes.max_running_sequences, sizes.max_batch_tokens)


def _step(
    count: int, rows: int, config: ModelConfig, context: int | None = None
) -> dict[str, Array]:
    """Of sequences of so many rows, which are followed by tokens that are drawn from a few."""
    sequences = max(1, count)
    sampled = min(sequences, most_running(config))
    none, ints = np.zeros(0, np.int32), np.zeros(sampled, np.int32)
    ends = np.zeros(sampled + 1, np.int32)
    step: dict[str, Array] = {
        "INPUT_IDS": np.arange(sequences * rows, dtype=np.int32) % 2,
        "cu_seqlens": np.arange(sequences + 1, dtype=np.int32) * rows,
        "sampled": np.arange(sampled, dtype=np.int32),
        "sampling": np.array([[1, 0.5, 0, 0, 0, 1, 0]] * sampled, np.float32),
        "sampling_ints": np.array([[0, 0, 0, -1]] * sampled, np.int64),
        "history": none,
        "history_cu": ends,
        "history_prompt": ints,
        "bias_ids": none,
        "bias_values": np.zeros(0, np.float32),
        "bias_cu": ends,
    }
    if context is not None:
        step |= {
            "context_lengths": np.linspace(context, rows, sequences).astype(np.int32),
            "block_table": np.zeros((sequences, -(-context // BLOCK)), np.int32),
        }
    return step
