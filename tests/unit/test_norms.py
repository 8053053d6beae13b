"""Norms that torch has in one kernel, in the place of transformers' own."""

from typing import Any

import pytest
import torch
from torch import nn

from python_mp.sharding.families import norms
from tests.support.families import FAMILIES

FUSED = {"llama": True, "mistral": True, "qwen3": True, "gemma3": False}
"""Gemma's weight is one less than what it multiplies with."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUSED)
def test_a_model_computes_the_same(name: str, dtype: torch.dtype) -> None:
    model = FAMILIES[name].make().to(dtype)
    ids = torch.arange(20)[None] + 3
    asked: dict[str, Any] = {"input_ids": ids}
    with torch.no_grad():
        wanted = model(**asked)[0].float()
        count = sum(type(part).__name__.endswith("RMSNorm") for part in model.modules())
        assert count
        assert norms.fuse(model) == count * FUSED[name]
        found = model(**asked)[0].float()
    limit = 1e-5 if dtype is torch.float32 else 0.1
    torch.testing.assert_close(found, wanted, rtol=limit, atol=limit)


class TwiceRMSNorm(nn.RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class LateRMSNorm(nn.RMSNorm):
    """Whose epsilon is not the one that it names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-3)


class GatedRMSNorm(nn.RMSNorm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x) * gate


@pytest.mark.parametrize("kind", [TwiceRMSNorm, LateRMSNorm, GatedRMSNorm])
def test_what_is_only_called_so_stays(kind: type[nn.RMSNorm]) -> None:
    model = nn.Sequential(kind(32, eps=1e-6))
    assert norms.fuse(model) == 0
    assert type(model[0]) is kind
