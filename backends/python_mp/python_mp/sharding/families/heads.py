"""What follows a model's hidden states: a vector for each text, or classes.

It is no part of an engine's graph: the first rank of the last stage computes it in torch, in
float32, of what any engine returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions as BaseOutputs,
)

from ...model.errors import LoadError
from ...model.paths import present, regular
from ..packed import Packed
from ..parallelize import load_weights
from ..pooling import pool
from ..rectangles import rectangles
from ..shard import Shard
from ..slices import Slices
from ..weights import Checkpoint, Weights
from . import skeleton, vector_layers
from .task import WEIGHTS, Task

HIDDEN_STATES = "HIDDEN_STATES"
GIVEN = {"input_ids", "attention_mask", "token_type_ids", "position_ids", "pixel_values"}
"""What an encoder has been given as well."""
NO_TOKEN = -1
"""Which is no id of any."""


def head(shard: Shard, config: PretrainedConfig, task: Task) -> nn.Module:
    """The module for the task: (batch, an encoder's outputs) -> outputs by name.

    Raises:
        LoadError: transformers has no such model for it, or a weight is missing.
    """
    if skeleton.in_one(config, task.kind):
        return ComputedInOne()
    weights = shard.given or _weights(shard)
    if task.kind == "embed":
        return Embedding(task, weights)
    return Classes(config, task, weights, shard.device)


def _weights(shard: Shard) -> Weights:
    """In float32: those of the build, or of a checkpoint that was put there by hand."""
    if present(shard.folder, WEIGHTS):
        return Slices(regular(shard.folder, WEIGHTS), shard.device)
    return Checkpoint(shard.folder, torch.float32, shard.device)


class Embedding(nn.Module):
    """HIDDEN_STATES [tokens, hidden] -> SENTENCE_EMBEDDING [texts, width]."""

    def __init__(self, task: Task, weights: Weights) -> None:
        super().__init__()
        self._modes = task.pooling
        self._layers = nn.Sequential(*(vector_layers.make(each, weights) for each in task.layers))

    def forward(self, batch: Packed, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"SENTENCE_EMBEDDING": self.vectors(outputs[HIDDEN_STATES], batch.cu_seqlens)}

    def vectors(self, states: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[tokens, hidden] of packed rows -> [texts, width]"""
        made: Tensor = self._layers(pool(states, cu_seqlens, self._modes))
        return made


class ComputedInOne(nn.Module):
    """HIDDEN_STATES [images, 1, classes] -> LOGITS [images, classes]."""

    def forward(self, _: Packed, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"LOGITS": outputs[HIDDEN_STATES][:, 0]}


class Outputs(BaseOutputs):
    """What heads ask of a base model's outputs; what they merely pass on, is not there."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class Done(nn.Module):
    """In the place of the base model: what it has computed."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.pooler = getattr(base, "pooler", None)
        self.activation = getattr(base, "pooler_activation", None)
        self.config = base.config
        self.states = torch.empty(0)

    def forward(self, *_: object, **given: object) -> Outputs:
        for name, value in given.items():
            if isinstance(value, Tensor) and name not in GIVEN:
                raise LoadError(
                    f"classes of a {self.config.model_type} want hidden states that are computed"
                    f" with {name}, which is not done here: serve it as a module of your own"
                )
        pooled = self.pooler(self._first()) if self.pooler is not None else None
        if pooled is not None and self.activation is not None:
            pooled = self.activation(pooled)
        return Outputs(last_hidden_state=self.states, pooler_output=pooled)

    def _first(self) -> Tensor:
        """What the pooler takes: a plain linear, as ALBERT's, has the first row."""
        return self.states[:, 0] if isinstance(self.pooler, nn.Linear) else self.states


class Classes(nn.Module):
    """transformers' model for the task, of which the base is done: HIDDEN_STATES [tokens, hidden]
    of packed rows, or [images, patches, hidden] -> LOGITS [texts, classes], [tokens, classes] or
    [images, classes]."""

    def __init__(
        self, config: PretrainedConfig, task: Task, weights: Weights, device: torch.device
    ) -> None:
        super().__init__()
        config = copy(config)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = NO_TOKEN  # Without one transformers takes one text at a time.
        self._padding = config.pad_token_id
        whole = skeleton.make(config, task.kind)
        base, (encoder, _) = whole.base_model, skeleton.kind(config)
        if type(base) is not encoder:
            raise LoadError(
                f"classes of a {config.model_type} come of a {type(base).__name__}, not of the"
                f" {encoder.__name__} that is served here: serve it as a module of your own"
            )
        self.done = Done(base)
        setattr(whole, whole.base_model_prefix, self.done)
        skeleton.finish(whole, device)
        load_weights(whole, weights)
        self.whole = whole
        self._by_token = task.kind == "tokens"

    def forward(self, batch: Packed, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"LOGITS": self._of_all(batch, outputs[HIDDEN_STATES].float())}

    def _of_all(self, batch: Packed, states: Tensor) -> Tensor:
        if not batch.is_ragged:
            return self._logits(states, pixel_values=batch["PIXEL_VALUES"])
        ids = batch["INPUT_IDS"]
        if self._by_token:
            return self._logits(states[None], input_ids=ids[None])[0]
        found: list[Tensor] = [torch.empty(0)] * len(batch.lengths)
        for each in rectangles(batch.lengths, ids.device):
            there = each.take(ids).masked_fill(~each.mask, self._padding)
            logits = self._logits(
                each.take(states), input_ids=there, attention_mask=each.mask.long()
            )
            for sequence, row in zip(each.sequences, logits, strict=True):
                found[sequence] = row
        return torch.stack(found)

    def _logits(self, states: Tensor, **arguments: Tensor) -> Tensor:
        self.done.states = states
        try:
            logits: Tensor = self.whole(**arguments).logits
        finally:
            self.done.states = torch.empty(0)
        return logits
