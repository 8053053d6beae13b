"""Modules without weights: made as their class says, but that parameters take no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter
from torch.utils.weak import WeakTensorKeyDictionary

from ..model.errors import LoadError


def hollow(make: Callable[[], nn.Module]) -> nn.Module:
    """The module with its parameters on the meta device, and buffers as it computes them: many are
    in no checkpoint. One that computes with its parameters while it is made has them after all.

    Raises:
        LoadError: a parameter has no size before the module is used.
    """
    try:
        with _parameters_on_meta():
            module = make()
    except Exception:
        module = make()  # If this raises, it is not our doing.
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise LoadError(f"{name} is of a lazy module: give it its sizes")
    return module


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    known = WeakTensorKeyDictionary()  # What is registered twice stays one.
    mine = get_ident()

    def register(_owner: nn.Module, _name: str, given: nn.Parameter | None) -> nn.Parameter | None:
        if given is None or given.is_meta or isinstance(given, UninitializedParameter):
            return given
        if get_ident() != mine:  # The hook is for all of the process.
            return given
        if given not in known:
            known[given] = nn.Parameter(given.to("meta"), requires_grad=False)
        found: nn.Parameter = known[given]
        return found

    hook = register_module_parameter_registration_hook(register)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()
