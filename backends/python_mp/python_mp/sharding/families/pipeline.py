"""One pipeline stage of a transformers module: its layers, and what passes through the others'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...model.errors import LoadError
from ..shard import Shard

FIRST = ("embeddings", "embed_tokens", "wte", "embed_in", "shared")
"""What makes the first hidden states of the inputs; `shared` is T5's, tied to embed_tokens."""
ADDED = ("wpe",)
"""What is added to them."""
BETWEEN = ("pre_layrnorm", "embeddings_project", "drop", "dropout", "emb_dropout", "embed_dropout")
LAST = (
    *("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "layernorm"),
    *("post_layernorm", "head", "pooler"),
)
EVERYWHERE = ("rotary_emb",)


class Pass(nn.Module):
    """In the place of a layer of another stage: returns its first tensor."""

    def __init__(self, was: nn.Module) -> None:
        super().__init__()
        plain = (str, int, float, bool, type(None))
        for name, value in vars(was).items():  # Models read some, such as `attention_type`.
            if not name.startswith("_") and isinstance(value, plain):
                setattr(self, name, value)

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
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
    "T5Block": PassWithBias,
    "MPNetLayer": PassInTuple,
    "DebertaV2Layer": PassInTuple,
}
"""By the class of the layer."""


class Given(nn.Module):
    """In the place of the embeddings: what the stage before handed over."""

    def __init__(self) -> None:
        super().__init__()
        self._hidden: list[Tensor] = []
        self._places: list[nn.Module] = []

    def __getattr__(self, name: str) -> Any:
        """Models look into their embeddings, for a dtype."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_places"][0], name)

    def instead_of(self, was: nn.Module) -> Given:
        self._places.append(was)
        return self

    def forward(self, *_: object, **__: object) -> Tensor:
        hidden = self._hidden[-1]
        return hidden if hidden.dim() == 3 else hidden[None]

    @contextmanager
    def giving(self, hidden: Tensor | None) -> Iterator[None]:
        if hidden is not None:
            self._hidden.append(hidden)
        try:
            yield
        finally:
            self._hidden.clear()


class Nothing(nn.Module):
    """In the place of an embedding that the first stage has added."""

    def forward(self, *_: object, **__: object) -> Tensor:
        return torch.zeros(())


def cut_to_stage(model: Any, config: Any, shard: Shard) -> Given:
    """Leaves of the model what this stage computes."""
    given = Given()
    if shard.stages == 1:
        return given
    base, layers = _layers(model, config)
    mine = shard.layers(len(layers))
    for index, layer in enumerate(layers):
        if index not in mine:
            layers[index] = PASSES.get(type(layer).__name__, Pass)(layer)
    if not shard.is_first:  # DeBERTa's goes with its first layer.
        convolving: list[Any] = [each for each in base.modules() if hasattr(each, "rel_embeddings")]
        for encoder in convolving:
            encoder.conv = None
    for name, child in list(base.named_children()):
        replacement = _replacement(name, child, layers, shard, given)
        if replacement is not None:
            setattr(base, name, replacement)
    return given


def _layers(model: Any, config: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The longest list of modules, as config.json counts them, and the module in which it and the
    embeddings are."""
    total = config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            parent = model.get_submodule(name.rpartition(".")[0])
            return (parent if _has_embeddings(parent) else model), module
    raise LoadError(f"a {config.model_type} has no list of {total} layers to cut in stages")


def _has_embeddings(module: nn.Module) -> bool:
    return any(name in FIRST for name, _ in module.named_children())


def _replacement(
    name: str, child: nn.Module, layers: nn.ModuleList, shard: Shard, given: Given
) -> nn.Module | None:
    if any(each is layers for each in child.modules()) or name in EVERYWHERE:
        return None
    if name in FIRST:
        return None if shard.is_first else given.instead_of(child)
    if name in ADDED:
        return None if shard.is_first else Nothing()
    if name in BETWEEN:
        return None if shard.is_first else Pass(child)
    if name in LAST:
        return None if shard.is_last else Pass(child)
    raise LoadError(f"it is not known to which pipeline stage {name} belongs; use one stage")
