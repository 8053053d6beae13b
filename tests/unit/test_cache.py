"""How many blocks a rank's cache of keys and values has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from python_mp.machine import memory
from python_mp.model.errors import InvalidInput, LoadError
from python_mp.rank import cache
from python_mp.rank.device import CpuDevice
from python_mp.sharding.kv_pages import block_bytes, new_cache
from python_mp.sharding.running import KvCache, Running
from tests.support.configs import INT32, model_config, tensor

HEADS, SIZE, LAYERS = 2, 16, 3
BLOCK_NBYTES = LAYERS * HEADS * 16 * 2 * SIZE * 4


class Memory(CpuDevice):
    def __init__(self, free: int) -> None:
        self.free = free

    def free_nbytes(self) -> int:
        return self.free


def opened(folder: Path, free: int, **parameters: Any) -> tuple[int, list[int]]:
    """The blocks, and each step's context."""
    tensors = [tensor("INPUT_IDS", INT32, -1, allow_ragged_batch=True)], [tensor("Y", INT32, -1)]
    config = model_config(folder, *tensors, engine="echo", **parameters)
    kept, contexts = KvCache(), list[int]()

    def forward(step: Mapping[str, Any]) -> Mapping[str, Any]:
        batch = Running(step, torch.device("cpu"), kept)
        rows = torch.ones(len(step["INPUT_IDS"]), HEADS, SIZE)
        for _ in range(LAYERS):
            batch.attend(rows, rows, rows, causal=True)
        contexts.append(batch.contexts[0])
        return {}

    cache.open_cache(forward, kept, config, Memory(free))
    assert kept.block_nbytes == BLOCK_NBYTES
    return kept.blocks, contexts


def test_as_many_as_fit_a_share_of_what_is_free(tmp_path: Path) -> None:
    free = 40 * BLOCK_NBYTES + 1
    assert opened(tmp_path, free) == (10, [2, 2, 3])
    assert opened(tmp_path, free, tensor_parallel_size=2, replicas=2)[0] == 2
    assert opened(tmp_path, 1 << 40)[0] == cache.MOST
    assert opened(tmp_path, 0, kv_cache_blocks=7)[0] == 7
    with pytest.raises(LoadError, match=r"0 MB of memory are left .* a block of 16 tokens takes"):
        opened(tmp_path, BLOCK_NBYTES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_taken_when_it_is_written(dtype: torch.dtype) -> None:
    before = psutil.Process().memory_info().rss
    pages = new_cache(1 << 15, 4, 64, dtype, torch.device("cpu"))
    nbytes = sum(each.nbytes for each in pages)
    assert nbytes == (1 << 15) * block_bytes(4, 64, dtype) >= 1 << 29
    assert psutil.Process().memory_info().rss - before < nbytes / 10
    assert all(each.data_ptr() % 64 == 0 and each[-1, -1, -1, -1] == 0 for each in pages)


def test_a_first_step_that_is_refused_ends_the_load(tmp_path: Path) -> None:
    def forward(_: object) -> Mapping[str, Any]:
        raise InvalidInput("too long")

    x, y = tensor("X", INT32, -1, allow_ragged_batch=True), tensor("Y", INT32, -1)
    config = model_config(tmp_path, [x], [y], engine="echo")
    with pytest.raises(LoadError, match="first step of 2 tokens: too long"):
        cache.open_cache(forward, KvCache(), config, Memory(1 << 30))


@pytest.mark.parametrize(
    ("how", "said"),
    [({"causal": False}, "not causal"), ({"causal": True, "bias": len}, "adds a bias")],
)
def test_attention_that_a_cache_cannot_serve(how: Any, said: str) -> None:
    step = {"INPUT_IDS": np.zeros(1, np.int32), "cu_seqlens": np.array([0, 1], np.int32)}
    rows = torch.ones(1, HEADS, SIZE)
    with pytest.raises(LoadError, match=said):
        Running(step, torch.device("cpu"), KvCache()).attend(rows, rows, rows, **how)
    with pytest.raises(LoadError, match="both of one size"):
        KvCache().note(0, rows, rows[..., :8])
    with pytest.raises(LoadError, match="more than 1 times"):
        KvCache().layer(1)


def test_available_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   40 kB\n")
    for limit, held, expected in ((None, 0, 40960), (1 << 20, 0, 40960), (9000, 5000, 4000)):
        monkeypatch.setattr(memory.cgroup, "memory", lambda limit=limit: limit)
        monkeypatch.setattr(memory.cgroup, "memory_held", lambda held=held: held)
        assert memory.available(tmp_path / "meminfo") == expected
    monkeypatch.setattr(memory.cgroup, "memory_held", lambda: 10000)
    assert memory.available(tmp_path / "meminfo") == 0
