"""One pipeline stage of a module that has its layers in a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..model.errors import LoadError
from .shard import Shard


class Pass(nn.Module):
    """In the place of another stage's layer."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return x


class _HandedOn(Exception):
    """What the stage's last layer has returned."""

    def __init__(self, hidden: Any) -> None:
        super().__init__()
        self.hidden = hidden


class LayerRange:
    """Leaves of the module the layers of this stage: the first of them is given what the stage
    before handed on, whatever stands before it; behind the last one the stage ends. What is no
    layer, every stage has.

    Raises:
        LoadError: the module has no such list.
    """

    def __init__(self, module: nn.Module, name: str | None, shard: Shard) -> None:
        layers = dict(module.named_modules()).get(name or "")
        if not isinstance(layers, nn.ModuleList | nn.Sequential) or layers is module:
            raise LoadError(
                f"layers is {name!r}, which is no ModuleList or Sequential of the module"
            )
        mine = shard.layers(len(layers))
        for index in set(range(len(layers))) - set(mine):
            layers[index] = Pass()
        self._hidden: Any = None
        self._handed_on: Any = None
        if not shard.is_first:
            layers[mine[0]].register_forward_pre_hook(self._give)
        if not shard.is_last:
            layers[mine[-1]].register_forward_hook(self._end)

    def compute(
        self, module: nn.Module, given: Mapping[str, Any], hidden: Tensor | None
    ) -> tuple[Any, bool]:
        """What the module returns, and whether it came to its end."""
        self._hidden, self._handed_on = hidden, None
        try:
            result = module(**given)
            return (result, True) if self._handed_on is None else (self._handed_on, False)
        except _HandedOn as handed:
            return handed.hidden, False
        finally:
            self._hidden = self._handed_on = None

    def _give(self, _layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._hidden, *arguments[1:])

    def _end(self, _layer: nn.Module, _arguments: object, result: Any) -> None:
        if not torch.compiler.is_exporting():
            raise _HandedOn(result)
        self._handed_on = result  # What follows is traced, and then dropped as nobody needs it.
