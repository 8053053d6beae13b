"""What a rank reads of a checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from python_mp.sharding.weights import Checkpoint, Recorder, Slices

KEPT = {
    "index": torch.tensor([[257, -(1 << 40)], [3, 4]]),
    "mask": torch.tensor([[True, False], [False, True]]),
    "bytes": torch.tensor([[255, 1], [2, 3]], dtype=torch.uint8),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_only_numbers_with_a_fraction_are_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file(KEPT | {"weight": torch.ones(2, 2, dtype=torch.float64)}, tmp_path / "m.safetensors")
    recorder = Recorder(Checkpoint(tmp_path, dtype, torch.device("cpu")))
    for name, wanted in KEPT.items():
        assert torch.equal(recorder.full(name), wanted)
        assert torch.equal(recorder.split(name, 1, 0, 2), wanted[:, :1])
    assert recorder.full("weight").dtype is dtype
    save_file(recorder.tensors, tmp_path / "rank0.safetensors", recorder.metadata())
    slices = Slices(tmp_path / "rank0.safetensors", torch.device("cpu"))
    assert all(torch.equal(slices.full(name), wanted) for name, wanted in KEPT.items())
    assert slices.full("weight").dtype is dtype
