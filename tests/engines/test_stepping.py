"""Steps that are replayed are what the module computes, whatever comes; and which models' are."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from python_mp.sharding.capture import Capture, NotCapturable, capturing
from python_mp.sharding.families.stepping import LEARNT, ROWS, Stepping
from python_mp.sharding.kv_pages import Pages
from python_mp.sharding.native import kernels
from python_mp.sharding.products import linear
from python_mp.sharding.replay import Replay
from tests.support import decoding
from tests.support.decoding import Ranks

pytestmark = pytest.mark.skipif(kernels is None, reason="the C extension was not built")
BLOCKS, MOST = 64, 40
REPLAYED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt2", "phi3", "granite", "smollm3")
"""Others' parts are torch's own for the most part."""


def model(name: str) -> object:
    known = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi")
    return decoding.model(name) if name in known else decoding.tiny_causal(name)


@pytest.mark.parametrize("name", [*REPLAYED, "gpt_neox", "phi", "mixtral"])
@pytest.mark.parametrize("stages", [1, 2])
def test_as_transformers_generates(name: str, stages: int) -> None:
    """Steps of one row and of pieces of prompts, mixed; those with more rows than there is room
    for are the module's."""
    whole = model(name)
    ranks = Ranks(whole, 1, stages, BLOCKS, torch.float32)
    assert ranks.capture(MOST) == (name in REPLAYED)
    every = decoding.asked(whole, 6, 50, 12)
    assert sum(decoding.run(ranks, deepcopy(every), BLOCKS, seed, 30) for seed in (1, 2)) <= 2


def pages(rows: int) -> Pages:
    none = torch.zeros(rows, dtype=torch.int64)
    return Pages(none, none[:, None].int(), none.int(), none.int())


def captured(module: Callable[[Tensor], Tensor], x: Tensor) -> Capture:
    with torch.inference_mode(), capturing(len(x), {"x": x}) as mode:
        found = module(x)
    return mode.finish(found)


WEIGHT, SMALL, OTHER = torch.randn(24, 24), torch.randn(24, 24) / 5, torch.randn(24)


def deep(x: Tensor) -> Tensor:
    for _ in range(6):
        x = linear(x, SMALL, OTHER)
    return x


def norm(x: Tensor) -> Tensor:
    width = x.shape[1]
    return torch.nn.functional.layer_norm(x, (width,), OTHER[:width], WEIGHT[0, :width].clone())


MODULES: dict[str, Callable[[Tensor], Tensor]] = {
    "joined": lambda x: torch.nn.functional.silu(linear(x, WEIGHT, None)) * x + x * 0.5,
    "columns": lambda x: linear(x[:, 8:24].contiguous(), WEIGHT[:, :16].contiguous(), OTHER) + x,
    "turned": lambda x: deep(x) + x.t().contiguous().t() + x[None, :, 3:4].cumsum(2)[0],
    "in place": lambda x: linear(x, WEIGHT, None).add_(x).mul_(OTHER) + linear(x, WEIGHT, None),
    "read twice": lambda x: (y := torch.nn.functional.silu(linear(x, WEIGHT, OTHER))) * x + y,
    "norm of a sum": lambda x: norm(linear(x, WEIGHT, OTHER) + x) + x,
    "sum read twice": lambda x: norm(y := linear(x, WEIGHT, OTHER) + x) + y,
    "norm that nobody reads": lambda x: (norm(y := deep(x) + x), y)[1],
    "norm of columns": lambda x: norm(x[:, 8:] + x[:, :16]) + linear(x, WEIGHT[:16], None),
    "gelu": lambda x: torch.nn.functional.gelu(linear(x, WEIGHT, OTHER)) + x,
    "tanh": lambda x: torch.nn.functional.gelu(linear(x, WEIGHT, OTHER), approximate="tanh") + x,
}


@pytest.mark.parametrize("name", MODULES)
def test_any_order_of_calls(name: str) -> None:
    """Against the module, for other rows than those that were captured, also more of them."""
    module = MODULES[name]
    capture = captured(module, torch.randn(ROWS, 24))
    replay = Replay(capture, 100)
    for rows in (1, 7, ROWS, 100, 7):
        x = torch.randn(rows, 24)
        torch.testing.assert_close(
            replay.run({"x": x}, pages(rows)), module(x), rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (lambda x: linear(x, WEIGHT, None) * (2 if x[0, 0] > 0 else 1), "looks at numbers"),
        (lambda x: linear(x[x[:, 0] > 0], WEIGHT, None), "looks at numbers"),
        (lambda _: OTHER, "has not computed"),
        (lambda x: x.sin().cos().exp(), "torch's own"),
    ],
)
def test_what_may_be_otherwise_is_not_replayed(
    module: Callable[[Tensor], Tensor], said: str
) -> None:
    with pytest.raises(NotCapturable, match=said):
        Replay(captured(module, torch.ones(ROWS, 24)), MOST)


@pytest.mark.parametrize("others_agree", [True, False])
@torch.inference_mode()
def test_what_differs_stays_the_modules(others_agree: bool) -> None:
    """A module that takes another way in its third call."""
    calls = []

    def module(x: Tensor) -> Tensor:
        calls.append(x)
        return linear(x, WEIGHT if len(calls) < 3 else 2 * WEIGHT, None)

    stepping = Stepping(nn.Identity(), MOST, lambda said: said and (others_agree or len(calls) < 2))
    for rows in (*map(sum, LEARNT), 9):
        x = torch.randn(rows, 24)
        found = stepping.step({"x": x}, pages(rows), lambda x=x: module(x))
        torch.testing.assert_close(found, linear(x, WEIGHT if len(calls) < 3 else 2 * WEIGHT, None))
    assert not stepping.is_replayed
    assert len(calls) == 5


@torch.inference_mode()
def test_rows_that_look_like_a_size_are_not_replayed() -> None:
    """All ranks capture the same number of rows, whatever sizes each has."""
    module = nn.Linear(24, 2 * ROWS)
    stepping = Stepping(module, MOST, bool)
    for rows in map(sum, LEARNT):
        x = torch.randn(rows, 24)
        stepping.step({"x": x}, pages(rows), lambda x=x: linear(x, module.weight, module.bias))
    assert not stepping.is_replayed
