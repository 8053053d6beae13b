"""Parts that are called straight compute the same, and nobody's hook is passed by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from python_mp.sharding.direct import call_directly


class Twice(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


def nets() -> list[nn.Module]:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return [
        nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(), Twice(8, 8)),
        nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Flatten(1), nn.LazyLinear(5)),
        nn.Sequential(encoder, nn.ModuleList([nn.Linear(8, 8)])[0]),
        torch.jit.script(nn.Linear(8, 8)),
    ]


@pytest.mark.filterwarnings("ignore")  # TorchScript's, and lazy layers'.
@pytest.mark.parametrize("which", range(4))
def test_a_module_computes_what_it_did(which: int) -> None:
    module, x = nets()[which].eval(), torch.randn(2, 3, 8)
    with torch.inference_mode():
        wanted = module(x)
        call_directly(module)
        assert torch.equal(module(x), wanted)
        call_directly(module)  # Again: nothing more.
        assert torch.equal(module(x), wanted)


def added(_: nn.Module, __: object, y: Tensor) -> Tensor:
    return y + 1


def own_forward(layer: nn.Module) -> None:
    was = layer.forward
    layer.forward = lambda x: was(x) + 1  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [lambda e: e.register_forward_hook(added), own_forward])
def test_hooks_count_set_before_and_after(change: Callable[[nn.Module], object]) -> None:
    x = torch.ones(1, 4)
    for before in (True, False):
        module = nn.Sequential(nn.Linear(4, 4))
        wanted = module(x) + 1
        if before:
            change(module[0])
        call_directly(module)
        if not before:
            change(module[0])
        assert torch.equal(module(x), wanted), before
    assert isinstance(module[0], nn.Linear)
