"""Generation on a GPU, by a stand-in whose copies and kernels are late, with poisoned memory."""

from itertools import pairwise
from pathlib import Path

import pytest

from python_mp.rank import stage as stages
from python_mp.rank.engines import torch as engine
from python_mp.rank.static_steps import sizes
from tests.support import decoding
from tests.support.decoder_stage import Stepped
from tests.support.late_cuda import LateCuda, LateDevice
from tests.support.replicas import lone_rank

BLOCKS = 40


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_late_stage_generates_what_transformers_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = LateCuda(3)
    monkeypatch.setattr(stages, "of_index", lambda *_, **__: LateDevice(cuda, depth=2))
    made = decoding.served_config(tmp_path, name, kv_cache_blocks=BLOCKS)
    stage = engine.load(lone_rank(made))
    asked = decoding.asked(decoding.model(name), 12, 40, 30)
    assert decoding.run(Stepped(stage, 3), asked, BLOCKS, 3, 20) <= 2
    assert cuda.replayed > 20
    while stage.improve():
        pass
    assert stage._graphs is not None
    assert set(stage._graphs._graphs) == set(sizes(32))


@pytest.mark.parametrize("most", [1, 7, 64, 100, 256])
def test_sizes_of_buckets(most: int) -> None:
    found = sizes(most)
    assert found == sorted(set(found))
    assert found[-1] == most
    assert all(b <= 2 * a for a, b in pairwise(found))
