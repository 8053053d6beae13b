"""What a rank reads of a checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import _TYPES, load_file, save_file
from torch import Tensor

from python_mp.sharding.slices import Recorder, Slices
from python_mp.sharding.weights import Checkpoint, Prefixed, Tensors, Weights

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
    recorder.save(tmp_path / "rank0.safetensors")
    slices = Slices(tmp_path / "rank0.safetensors", torch.device("cpu"))
    assert all(torch.equal(slices.full(name), wanted) for name, wanted in KEPT.items())
    assert slices.full("weight").dtype is dtype


def test_what_a_module_asks_for_is_saved_as_the_checkpoint_has_it(tmp_path: Path) -> None:
    """Parts, joined and transposed ones, and tied ones, though the module changes what it got; a
    rank then has them without a copy."""
    whole = {"a": torch.arange(24.0).view(6, 4), "b": torch.arange(30.0).view(6, 5)}
    given = Tensors(whole | {"tied": whole["a"]}, torch.float32)

    def ask(weights: Weights) -> list[Tensor]:
        def join(inner: Weights) -> Tensor:
            parts = [Prefixed(inner, "").split(name, 0, 1, 2) for name in "ab"]
            return torch.cat(parts, 1).t().contiguous()

        first = [weights.full("a"), weights.full("tied"), weights.split("b", 1, 0, 2)]
        return [*first, weights.split("a", 0, 1, 2), weights.made("a+b", join)]

    wanted = [tensor.clone() for tensor in ask(given)]
    recorder = Recorder(given)
    for copied in (2, 4):
        ask(recorder)[copied].mul_(2)
    recorder.save(tmp_path / "rank0.safetensors")
    found = ask(Slices(tmp_path / "rank0.safetensors", torch.device("cpu")))
    assert all(map(torch.equal, found, wanted))
    assert _mapped(tmp_path / "rank0.safetensors", found)


def test_every_dtype_that_the_format_has_is_saved_and_lines_of_the_cache_come_first(
    tmp_path: Path,
) -> None:
    count, path = 3, tmp_path / "rank0.safetensors"
    given = {str(dtype): torch.randint(2, (count, 1)).to(dtype) for dtype in _TYPES.values()}
    given |= {"panels": torch.rand(2, 3, 32), "empty": torch.ones(0, 4), "one": torch.tensor(2.0)}
    recorder = Recorder(Tensors(given, torch.float32))
    wanted = {name: recorder.made(name, lambda _, name=name: given[name]) for name in given}
    recorder.save(path)
    found = load_file(path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype is tensor.dtype
        assert found[name].shape == tensor.shape
        assert _bytes(found[name]) == _bytes(tensor)
    assert Slices(path, torch.device("cpu")).full("panels").data_ptr() % 64 == 0


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


def _mapped(path: Path, tensors: list[Tensor]) -> bool:
    """Whether they lie in the process's map of the file."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [[int(x, 16) for x in each[0].split("-")] for each in maps if each[-1] == str(path)]
    return all(any(a <= t.data_ptr() < b for a, b in ranges) for t in tensors)
