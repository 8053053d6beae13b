"""A module whose `forward` takes a model's inputs by their names, as engines call it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..model.errors import LoadError
from .layer_range import LayerRange
from .packed import Packed
from .shard import Shard

BATCH = "batch"
"""An argument of this name gets the batch itself."""
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class ByName(nn.Module):
    """(batch, hidden) -> {output: tensor}. Floats are given in the dtype that is computed with.

    The module returns outputs by name, several in the order of config.pbtxt, or its only one.
    """

    def __init__(self, module: nn.Module, shard: Shard, stage: LayerRange | None = None) -> None:
        super().__init__()
        self.module = module
        self._arguments = arguments(module, shard.inputs)
        self._outputs = shard.outputs
        self._dtype = shard.dtype
        self._stage = stage

    def forward(self, batch: Packed, hidden: Tensor | None) -> Tensor | dict[str, Tensor]:
        given = {
            argument: batch if name == BATCH else self._tensor(batch[name])
            for argument, name in self._arguments.items()
            if name == BATCH or name in batch
        }
        if self._stage is None:
            return self._named(self.module(**given))
        result, is_done = self._stage.compute(self.module, given, hidden)
        return self._named(result) if is_done else result

    def _tensor(self, given: Tensor) -> Tensor:
        return given.to(self._dtype) if given.is_floating_point() else given

    def _named(self, result: Any) -> dict[str, Tensor]:
        if isinstance(result, Tensor):
            result = [result]
        if isinstance(result, Sequence) and len(result) == len(self._outputs):
            return dict(zip(self._outputs, result, strict=True))
        if isinstance(result, Mapping):
            return {_of(name, self._outputs) or name: each for name, each in result.items()}
        raise LoadError(
            f"the module returned {type(result).__name__}; it must return the outputs"
            f" {', '.join(self._outputs)} of config.pbtxt: a dict of tensors by name, or as many"
            " tensors in that order"
        )


def arguments(module: nn.Module, inputs: Sequence[str]) -> dict[str, str]:
    """The input for each argument of the module's `forward`: of the same name, in lower case or
    not; one input may have any name if there is one argument.

    Raises:
        LoadError: an input has no argument, or an argument no input.
    """
    said = inspect.signature(module.forward).parameters
    names = [name for name, each in said.items() if each.kind in _NAMED]
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in said.values())
    found = {name: given for name in names if (given := _of(name, (*inputs, BATCH)))}
    needed = [name for name in names if said[name].default is inspect.Parameter.empty]
    lacking = [name for name in needed if name not in found]
    left = [name for name in inputs if name not in found.values()]
    if len(lacking) == len(left) == len(inputs) == 1:
        return found | {lacking[0]: left[0]}
    if lacking or (left and not takes_all):
        raise LoadError(
            f"forward({', '.join(names)}) does not fit the inputs {', '.join(inputs)} of"
            f" config.pbtxt: {lacking[0] if lacking else left[0]} stands on one side only"
        )
    return found | {name: name for name in left}


def _of(name: str, known: Sequence[str]) -> str | None:
    """The one of that name, whatever its case."""
    return next((each for each in known if each == name), None) or next(
        (each for each in known if each.lower() == name.lower()), None
    )
