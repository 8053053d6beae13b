"""One pipeline stage of a transformers module: its layers, and what passes through the others'."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...model.errors import LoadError
from ..shard import Shard

FIRST = ("embeddings", "embed_tokens", "wte", "embed_in", "shared")
"""What makes the first hidden states of the inputs; `shared` is T5's, tied to embed_tokens."""
WIDENING = ("embeddings_project", "project_in")
"""What makes them as wide as the layers."""
LAST = ("head", "pooler")
"""What the last stage alone needs. All the rest is small, and every stage has it: models use the
same norm in several places."""


class Handover:
    """What the stage before has handed over, and what this one hands on: what the next layer is
    given. So nothing that a model does to its embeddings, between two layers or after the last one
    is done twice, or not at all."""

    def __init__(self) -> None:
        self.given: Tensor | None = None
        self.taken: Tensor | None = None

    @contextmanager
    def of(self, hidden: Tensor | None) -> Iterator[None]:
        """hidden: of packed rows, [tokens, width], or [texts or images, rows, width]."""
        packed = hidden is not None and hidden.dim() == 2
        self.given = hidden[None] if hidden is not None and packed else hidden
        try:
            yield
        finally:
            self.given = self.taken = None

    def before(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """A hook of the first layer."""
        return self.given, *arguments[1:]

    def after(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        """A hook of the layer behind the last one."""
        self.taken = arguments[0]


class Pass(nn.Module):
    """In the place of a layer of another stage: returns its first tensor."""

    def __init__(self, was: nn.Module) -> None:
        super().__init__()
        plain = (str, int, float, bool, type(None))
        for name, value in vars(was).items():  # Models read some, such as `attention_type`.
            if not name.startswith("_") and isinstance(value, plain):
                setattr(self, name, value)

    def forward(self, x: Tensor, *_: object, **__: object) -> Any:
        return x


class PassInTuple(Pass):
    """In the place of a layer that returns its attention as well."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Any:
        return x, None


class PassWithBias(Pass):
    """T5's layers return what they add to scores, too. The first one makes it, in every stage."""

    def __init__(self, was: Any) -> None:
        super().__init__(was)
        attention = was.layer[0].SelfAttention
        self.layer = nn.ModuleList([nn.Module()])  # The weights keep their names.
        if attention.has_relative_attention_bias:
            for linear in ("q", "k", "v", "o"):
                delattr(attention, linear)
            self.layer[0].SelfAttention = attention

    def forward(self, x: Tensor, *more: object, **__: object) -> Any:
        if attention := getattr(self.layer[0], "SelfAttention", None):
            return x, attention.compute_bias(), None
        return x, more[1], None


PASSES: Mapping[str, type[Pass]] = {
    **dict.fromkeys(("T5Block", "MT5Block"), PassWithBias),
    **dict.fromkeys(("DebertaLayer", "DebertaV2Layer", "MPNetLayer"), PassInTuple),
}
"""By the class of the layer."""


class Given(nn.Module):
    """In the place of the embeddings: something of their shape. It is no number, so that a model
    whose later layers are given more of its embeddings is found out."""

    def __init__(self, was: nn.Module, handover: Handover) -> None:
        super().__init__()
        self._handover = handover
        self._places = [was]

    def __getattr__(self, name: str) -> Any:
        """Models look into their embeddings, for a dtype."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_places"][0], name)

    def forward(self, *_: object, **__: object) -> Tensor:
        assert self._handover.given is not None
        return torch.full_like(self._handover.given, math.nan)


class Unchanged(nn.Module):
    """In the place of what another stage does before the first layer, or after the last one."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return x


def cut_to_stage(model: Any, config: Any, shard: Shard) -> Handover:
    """Leaves of the model what this stage computes."""
    handover = Handover()
    if shard.stages == 1:
        return handover
    base, layers = _layers(model, config)
    mine = shard.layers(len(layers))
    for index, layer in enumerate(layers):
        if index not in mine:
            layers[index] = PASSES.get(type(layer).__name__, Pass)(layer)
    if not shard.is_first:
        layers[mine.start].register_forward_pre_hook(handover.before)
    if not shard.is_last:
        layers[mine.stop].register_forward_pre_hook(handover.after)
    for name, child in list(base.named_children()):
        replacement = _replacement(name, child, layers, shard, handover)
        if replacement is not None:
            setattr(base, name, replacement)
    return handover


def _layers(model: Any, config: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The longest list of modules, as config.json counts them, and the module in which it and the
    embeddings are."""
    total = getattr(config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            parent = model.get_submodule(name.rpartition(".")[0])
            return (parent if _has_embeddings(parent) else model), module
    raise LoadError(f"a {config.model_type} has no list of layers to cut in stages; use one")


def _has_embeddings(module: nn.Module) -> bool:
    return any(name in FIRST for name, _ in module.named_children())


def _replacement(
    name: str, child: nn.Module, layers: nn.ModuleList, shard: Shard, handover: Handover
) -> nn.Module | None:
    """None for what every stage has, since it is not known to belong to one of them."""
    if any(each is layers for each in child.modules()):
        return None
    if name in FIRST and not shard.is_first:
        return Given(child, handover)
    if (name in WIDENING and not shard.is_first) or (name in LAST and not shard.is_last):
        return Unchanged()
    return None
