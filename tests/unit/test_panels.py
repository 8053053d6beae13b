"""A rank's weights of products in panels: written by a build, made at a load, or not wanted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from python_mp.rank.collectives.communicator import Alone
from python_mp.sharding import layers, panels
from python_mp.sharding.layers import ColumnParallelLinear
from python_mp.sharding.panels import Panels
from python_mp.sharding.shard import Shard
from python_mp.sharding.slices import Recorder, Slices
from python_mp.sharding.weights import Tensors, Weights

CPU = torch.device("cpu")
NAMES = {"one": ("q",), "joined": ("q", "k")}
WHOLE = {f"{name}.weight": torch.randn(64, 24) for name in "qk"}
X = torch.randn(5, 24)

needs_kernels = pytest.mark.skipif(
    not panels.fits(torch.ones(32, 1)), reason="the C extension was not built"
)


def _layer(weights: Weights, names: tuple[str, ...], wanted: bool = True) -> ColumnParallelLinear:
    where = 0, 1, 0, 1, torch.float32, CPU, Path(), {}, Alone()
    return ColumnParallelLinear(Shard(*where, weights, panels=wanted), *names)


def _file(folder: Path, names: tuple[str, ...]) -> Weights:
    recorder = Recorder(Tensors(WHOLE, torch.float32))
    _layer(recorder, names)
    recorder.save(folder / "rank0.safetensors")
    return Slices(folder / "rank0.safetensors", CPU)


def _is_right(layer: ColumnParallelLinear, names: tuple[str, ...]) -> None:
    weight: Tensor = torch.cat([WHOLE[f"{name}.weight"] for name in names])
    assert torch.equal(layer.weight + 0, weight)
    torch.testing.assert_close(layer(X), X @ weight.t())


@needs_kernels
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_those_of_a_build_are_taken_from_the_file(tmp_path: Path, names: tuple[str, ...]) -> None:
    layer = _layer(_file(tmp_path, names), names)
    assert isinstance(layer.weight, Panels)
    _is_right(layer, names)


@needs_kernels
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_a_file_of_an_older_build_is_arranged_at_the_load(
    tmp_path: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # As layers asked for weights then.
        part = layers._part
        patch.setattr(
            layers, "product_weight", lambda shard, *given: part(shard, shard.weights, *given)
        )
        older = _file(tmp_path, names)
    layer = _layer(older, names)
    assert isinstance(layer.weight, Panels)
    _is_right(layer, names)


@needs_kernels
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("wanted", [True, False], ids=["no kernels", "traced"])
def test_where_panels_do_not_compute_a_weight_is_rows(
    tmp_path: Path, names: tuple[str, ...], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = _file(tmp_path, names)
    if wanted:
        monkeypatch.setattr(panels, "kernels", None)
    layer = _layer(built, names, wanted)
    assert type(layer.weight) is Tensor
    _is_right(layer, names)
