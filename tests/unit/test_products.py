"""Products of our kernel against float64, with each set of instructions that this machine has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from python_mp.sharding import _kernels, products
from python_mp.sharding.gelu import gelu
from python_mp.sharding.panels import PANEL, Panels, in_panels, in_rows, rows_of
from python_mp.sharding.products import linear
from tests.support.instruction_sets import SETS, computed_by


@pytest.mark.parametrize("which", SETS)
@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 30) | st.integers(60, 90) | st.just(250),
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 200) | st.just(1600),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    has_bias=st.booleans(),
    threads=st.integers(1, 5),
    panels=st.integers(0, 3),
)
def test_it_is_the_product(
    which: int,
    rows: int,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    has_bias: bool,
    threads: int,
    panels: int,
) -> None:
    """In rows, or in so many panels."""
    outputs = panels * PANEL or outputs
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs).to(dtype)
    held = weight.view(-1, PANEL, inputs).transpose(1, 2).contiguous() if panels else weight
    bias = torch.randn(outputs) if has_bias else None
    beyond = torch.full((rows + 2, outputs), 7.0)
    with computed_by(which):
        _kernels.multiply(
            beyond[1].data_ptr(),
            x.data_ptr(),
            held.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            rows,
            outputs,
            inputs,
            dtype is torch.bfloat16,
            threads,
            panels > 0,
        )
    wide = None if bias is None else bias.double()
    torch.testing.assert_close(
        beyond[1:-1], F.linear(x.double(), weight.double(), wide).float(), rtol=1e-5, atol=2e-4
    )
    assert (beyond[[0, -1]] == 7).all()


@pytest.mark.parametrize("which", SETS)
def test_in_panels_a_row_has_the_same_bits_in_any_company(which: int) -> None:
    """One, few or many rows, on any number of threads."""
    weight, bias, x = torch.randn(96, 576), torch.randn(96), torch.randn(200, 576)
    panels = Panels(in_panels(weight))
    with computed_by(which):
        together = linear(x, panels, bias)
        for rows in (1, 2, 3, 11, 31, 97):
            for start in range(0, 200 - rows, 41):
                found = linear(x[start : start + rows], panels, bias)
                assert torch.equal(found, together[start : start + rows])


def test_panels_are_the_weight_to_whoever_looks() -> None:
    weight = torch.randn(64, 5)
    panels = Panels(in_panels(weight))
    assert (panels.shape, panels.dtype, panels.device) == (
        weight.shape,
        weight.dtype,
        weight.device,
    )
    assert torch.equal(in_rows(in_panels(weight)), weight)
    assert torch.equal(panels + 0, weight)
    x, ids = torch.randn(3, 5), torch.randint(64, (1, 7)).int()
    assert torch.equal(F.linear(x, panels), F.linear(x, weight))
    assert torch.equal(rows_of(panels, ids), F.embedding(ids, weight))


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_company(which: int, dtype: torch.dtype) -> None:
    """So that a sequence does not depend on what else is computed with it."""
    x, weight = torch.randn(products.MOST_ROWS_BFLOAT16, 100).to(dtype), torch.randn(50, 100)
    weight = weight.to(dtype)
    with computed_by(which):
        together = linear(x, weight, None)
        for row in range(len(x)):
            assert torch.equal(linear(x[row : row + 1], weight, None)[0], together[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("x", "weight"),
    [
        ((3, 8), (5, 8)),
        ((2, 3, 8), (5, 8)),
        ((8,), (5, 8)),
        ((0, 8), (5, 8)),
        ((3, 0), (5, 0)),
        ((3, 8), (0, 8)),
        ((1000, 8), (5, 8)),
    ],
)
@pytest.mark.parametrize("is_compiled", [True, False])
def test_whatever_computes_it(
    is_compiled: bool,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All shapes and types, also rows that do not lie one after another."""
    if not is_compiled:
        monkeypatch.setattr(products, "kernels", None)
    given, matrix = torch.randn(x).to(dtype), torch.randn(weight[::-1]).to(dtype).t()
    bias = torch.randn(weight[0]).to(dtype)
    found = linear(given, matrix, bias)
    wanted = F.linear(given.double(), matrix.double(), bias.double()).to(dtype)
    limit = 2e-2 if dtype.itemsize == 2 else 1e-5
    torch.testing.assert_close(found, wanted, rtol=limit, atol=limit)


@pytest.mark.parametrize("which", SETS)
def test_gelu_is_torchs(which: int) -> None:
    for count in (0, 1, 15, 100_003):
        x = torch.linspace(-12, 12, count)
        x[count // 2 :] *= 1e3
        with computed_by(which):
            found = gelu(x)
        torch.testing.assert_close(found, F.gelu(x.double()).float(), rtol=1e-6, atol=2e-6)
    assert gelu(torch.tensor([torch.nan])).isnan().all()


def test_a_graph_has_torchs_product() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return linear(x, weight, None)

    graph = torch.export.export(Layer(), (torch.randn(1, 8), torch.randn(4, 8))).graph
    assert "aten.linear.default" in str(graph)


def test_a_width_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a weight of 8 columns cannot take 7"):
        linear(torch.randn(1, 7), torch.randn(4, 8), None)
