"""Weights as a processor multiplies with them best: in panels of 32 outputs, whose weights for one
input lie side by side, [outputs / 32, inputs, 32] (`kernels/panels.h`).

A build writes them so, and ranks map the file. Where our kernels do not compute, the rows are put
together again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from .native import kernels
from .numerics import widened

PANEL = 32


class Panels(Tensor):
    """A weight [outputs, inputs] that lies in panels. `products.linear` multiplies with these; any
    other operator of torch is given the rows, which are put together each time.

    Args:
        panels: [outputs / 32, inputs, 32].
    """

    panels: Tensor

    @staticmethod
    def __new__(cls, panels: Tensor) -> Panels:
        count, inputs, _ = panels.shape
        made: Panels = Tensor._make_wrapper_subclass(
            cls, (count * PANEL, inputs), dtype=panels.dtype, device=panels.device
        )
        made.panels = panels
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operator: Any, _: Any, arguments: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        given, by_name = tree_map(_plain, (arguments, named or {}))
        return operator(*given, **by_name)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Panels({self.panels!r})"


def fits(weight: Tensor) -> bool:
    """Whether products with it are ours for any number of rows, and it has no part of a panel."""
    if kernels is None or kernels.instruction_sets()[0] == "baseline":
        return False
    ours = weight.dtype is torch.float32 or (weight.dtype is torch.bfloat16 and widened(weight))
    return (
        ours
        and weight.device.type == "cpu"
        and weight.numel() > 0
        and _outputs(weight) % PANEL == 0
    )


def in_panels(weight: Tensor) -> Tensor:
    """[outputs, inputs] -> [outputs / 32, inputs, 32]; as it is where it does not fit."""
    if not fits(weight):
        return weight
    return weight.view(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def in_rows(weight: Tensor) -> Tensor:
    """What `in_panels` has made -> [outputs, inputs]."""
    return weight.transpose(1, 2).flatten(0, 1) if weight.dim() == 3 else weight


def taken(weight: Tensor, wanted: bool) -> Tensor:
    """What `in_panels` has made, here or at a build elsewhere, as a layer takes it.

    Args:
        wanted: in panels, if they fit here.
    """
    is_mine = wanted and weight.dim() == 3 and fits(weight)
    return Panels(weight) if is_mine else in_rows(weight)


def rows_of(weight: Tensor, numbers: Tensor) -> Tensor:
    """As an embedding takes them of its weight, [...] -> [..., inputs]; also out of `Panels`."""
    if isinstance(weight, Panels):
        return weight.panels[numbers // PANEL, :, numbers % PANEL]
    return F.embedding(numbers, weight)


def _outputs(weight: Tensor) -> int:
    return weight.shape[0] * (PANEL if weight.dim() == 3 else 1)


def _plain(value: Any) -> Any:
    return in_rows(value.panels) if isinstance(value, Panels) else value
