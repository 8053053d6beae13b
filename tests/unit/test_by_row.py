"""Norms and rotations by kernels of ours against float64, and whose own code they stand for."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from python_mp.sharding import _kernels, by_row
from python_mp.sharding.families import kernelled
from python_mp.sharding.families.kernelled import Rotary
from tests.support.instruction_sets import SETS, computed_by


@pytest.mark.parametrize("which", SETS)
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 5) | st.just(300), width=st.integers(1, 70) | st.just(576))
def test_it_is_the_norm(which: int, rows: int, width: int) -> None:
    x, gain = torch.randn(rows, width), torch.randn(width)
    wide = x.double()
    wanted = wide * (wide.square().mean(1, keepdim=True) + 1e-5).rsqrt() * gain.double()
    with computed_by(which):
        torch.testing.assert_close(by_row.normalised(x, gain, 1e-5), wanted.float())


@pytest.mark.parametrize("which", SETS)
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 5) | st.just(300),
    width=st.integers(1, 70) | st.just(576),
    adds=st.booleans(),
    shifts=st.booleans(),
    mean=st.sampled_from([0.0, 10.0]),
)
def test_it_is_the_layer_norm(
    which: int, rows: int, width: int, adds: bool, shifts: bool, mean: float
) -> None:
    """Of a sum, too, and where rows are far from zero."""
    a, b = torch.randn(rows, width) + mean, torch.randn(rows, width)
    gain, bias = torch.randn(2, width)
    y = torch.empty(rows, width)
    pointers = (y.data_ptr(), a.data_ptr(), b.data_ptr() if adds else 0)
    of_width = gain.data_ptr(), bias.data_ptr() if shifts else 0
    with computed_by(which):
        _kernels.standardise(*pointers, *of_width, rows, width, 1e-5, 2)
    x = (a + b if adds else a).double()
    wanted = nn.functional.layer_norm(x, (width,), gain.double(), shifts * bias.double(), 1e-5)
    torch.testing.assert_close(y, wanted.float(), atol=2e-3 if mean else 1e-5, rtol=1e-4)


@pytest.mark.parametrize("which", SETS)
@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(0, 5) | st.just(300),
    heads=st.integers(1, 9),
    half=st.integers(1, 70),
    behind=st.integers(0, 9),
)
def test_it_is_the_rotation(which: int, tokens: int, heads: int, half: int, behind: int) -> None:
    """Of heads that lie in wider rows."""
    x = torch.randn(tokens, heads * 2 * half + behind)[:, : heads * 2 * half]
    x = x.unflatten(1, (heads, 2 * half))
    cos, sin = torch.randn(2, tokens, 2 * half)
    low, high = x.double().chunk(2, 2)
    wanted = x.double() * cos[:, None] + torch.cat((-high, low), 2) * sin[:, None]
    with computed_by(which):
        torch.testing.assert_close(by_row.rotated(x, cos, sin), wanted.float())


@pytest.mark.parametrize(
    ("kind", "halves"),
    [("llama", True), ("qwen3", True), ("gemma3", True), ("cohere", False), ("glm4", False)],
)
def test_only_what_computes_the_same_is_taken(kind: str, halves: bool) -> None:
    """Cohere and GLM turn pairs of neighbours; Cohere's norms subtract the mean."""
    file = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    own = file.apply_rotary_pos_emb
    assert Rotary(getattr(own, "_own", own)).is_same == halves
    norms = [each for name, each in vars(file).items() if name.endswith("RMSNorm")]
    assert bool(norms) == (kind != "cohere")
    for norm in norms:
        parent = nn.Module()
        parent.norm = norm(24)
        nn.init.normal_(parent.norm.weight)
        vars(parent)["norm"], x = parent.norm, torch.randn(2, 3, 24)
        wanted = parent.norm(x)
        kernelled.take(parent)
        assert type(parent.norm) is kernelled.Norm
        torch.testing.assert_close(parent.norm(x), wanted)


class LikeRMSNorm(nn.Module):
    eps = 1e-6

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.abs().mean(-1, keepdim=True) + self.eps) * self.weight


def test_a_norm_of_another_kind_stays() -> None:
    assert kernelled._norm(LikeRMSNorm()) is None
