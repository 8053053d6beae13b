"""A user's module.py without `build`: a torch module that knows nothing of ranks or batches, and a
plan beside it.

    class Net(nn.Module): ...            the one that no other of the file uses, or `module = Net`
    plan = {"blocks.*.up": "colwise"}    how it is split; without one it is whole
    layers = "blocks"                    its list of layers, which pipeline stages share
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..model.errors import LoadError, describe
from .by_name import ByName
from .hollow import hollow
from .layer_range import LayerRange
from .shard import Shard
from .split_plan import Plan
from .tied import Renamed, tied

_KINDS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
}


@dataclass(frozen=True)
class PlainModule:
    """What a module.py says: `make(**arguments)` returns the module."""

    make: Callable[..., nn.Module]
    plan: Plan | None
    layers: str | None

    def build(self, shard: Shard) -> nn.Module:
        """One rank's part.

        Raises:
            LoadError: the module, its plan, its weights or config.pbtxt do not go together.
        """
        self._check_layout(shard)
        module = hollow(lambda: self._made(shard))
        stage = LayerRange(module, self.layers, shard) if shard.stages > 1 else None
        shard.parallelize(module, self.plan or {})
        return ByName(module.to(shard.device, shard.dtype), shard, stage)

    def whole(self, shard: Shard) -> nn.Module:
        """The same by torch alone, in one piece: to judge ours by.

        Raises:
            LoadError: the checkpoint is of another module.
        """
        module = self._made(shard)
        weights = Renamed(shard.weights, tied(module, shard.weights))
        module.load_state_dict({name: weights.full(name) for name in module.state_dict()})
        return ByName(module.to(shard.device, shard.dtype), shard)

    def _check_layout(self, shard: Shard) -> None:
        if shard.size > 1 and not self.plan:
            raise LoadError(
                f"tensor_parallel_size is {shard.size}, but module.py does not say how the module"
                " is split: write a plan beside it, as in plan = {'up': 'colwise', 'down':"
                " 'rowwise'}, or set it to 1"
            )
        if shard.stages > 1 and not self.layers:
            raise LoadError(
                f"pipeline_parallel_size is {shard.stages}, but module.py does not say what the"
                " stages share: name the module's list of layers, as in layers = 'blocks', or set"
                " it to 1"
            )

    def _made(self, shard: Shard) -> nn.Module:
        arguments = self._arguments(shard.parameters)
        try:
            module = self.make(**arguments)
        except Exception as error:
            raise LoadError(
                f"{self._name} raised {describe(error)}; its arguments are the parameters"
                " module.NAME of config.pbtxt"
            ) from error
        if not isinstance(module, nn.Module):
            raise LoadError(f"{self._name} must return a torch.nn.Module, not {module!r:.80}")
        return module.eval()

    def _arguments(self, given: Mapping[str, str]) -> dict[str, Any]:
        known = inspect.signature(self.make).parameters
        arguments = {}
        for name, text in given.items():
            if name not in known:
                raise LoadError(f"config.pbtxt has module.{name}, which {self._name} does not take")
            kind = _kind(known[name])
            try:
                arguments[name] = _KINDS[kind](text)
            except (ValueError, KeyError):
                raise LoadError(f"module.{name} of config.pbtxt is {text!r}, no {kind}") from None
        return arguments

    @property
    def _name(self) -> str:
        return getattr(self.make, "__name__", "module")


def find(module: ModuleType, path: Path) -> PlainModule | None:
    """What a module.py has; None where it has no torch module.

    Raises:
        LoadError: it has several, or what stands beside is of the wrong kind.
    """
    make = getattr(module, "module", None) or _only_class(module, path)
    if make is None:
        return None
    if not callable(make) or isinstance(make, nn.Module):
        raise LoadError(f"{path}: module must be a class or a function that makes the module")
    plan, layers = getattr(module, "plan", None), getattr(module, "layers", None)
    if plan is not None and not isinstance(plan, Mapping):
        raise LoadError(f"{path}: plan must be a dict from names of layers to how they are split")
    if layers is not None and not isinstance(layers, str):
        raise LoadError(f"{path}: layers must be the name of the module's list of layers")
    return PlainModule(make, plan, layers)


def _only_class(module: ModuleType, path: Path) -> type[nn.Module] | None:
    """The class of the file that none of its other classes names."""
    classes = {
        name: each
        for name, each in vars(module).items()
        if isinstance(each, type)
        and issubclass(each, nn.Module)
        and each.__module__ == module.__name__
    }
    used = {
        inner.id
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.ClassDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Name) and inner.id != node.name
    }
    left = [name for name in classes if name not in used]
    if len(left) > 1 or (classes and not left):
        raise LoadError(
            f"{path} has the modules {', '.join(left or classes)}: say which one is served, as in"
            f" module = {(left or list(classes))[-1]}"
        )
    return classes[left[0]] if left else None


def _kind(parameter: inspect.Parameter) -> str:
    """Of an argument, by its annotation or its default."""
    said = parameter.annotation
    kind = said if isinstance(said, str) else getattr(said, "__name__", "")
    return (
        kind
        if kind in _KINDS
        else next((each for each in _KINDS if type(parameter.default).__name__ == each), "str")
    )
