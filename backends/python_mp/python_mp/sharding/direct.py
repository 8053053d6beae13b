"""Parts of a module are called straight, without what torch does at each call for hooks.

A text of average length is a few milliseconds' work, and a model's module has a hundred parts.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    "_compiled_call_impl",
)


def call_directly(module: nn.Module) -> None:
    """From now on a call of the module, or of a part, is one of its `forward`; but for what has
    hooks, or is called in a way of its own. A hook or a `forward` that is set later counts."""
    for part in module.modules():
        kind = type(part)
        plain = kind.__call__ is nn.Module.__call__ and "forward" not in vars(part)
        if plain and not any(getattr(part, name) for name in HOOKS):
            part.__class__ = _direct(kind)  # type: ignore[arg-type]


@cache
def _direct(kind: type[nn.Module]) -> type[nn.Module]:
    def hooked(register: Any) -> Any:
        def call(part: nn.Module, *arguments: Any, **named: Any) -> Any:
            part.__class__ = kind
            return register(part, *arguments, **named)

        return call

    names = ("register_forward_hook", "register_forward_pre_hook", "compile")
    changed = {name: hooked(getattr(kind, name)) for name in names}

    def set_one(part: nn.Module, name: str, value: Any) -> None:
        if name == "forward":
            part.__class__ = kind
        kind.__setattr__(part, name, value)

    changed |= {"__call__": kind.forward, "__setattr__": set_one, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), changed)
