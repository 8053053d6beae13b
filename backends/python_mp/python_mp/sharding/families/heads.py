"""What a class of transformers has behind its base model: classes for texts, tokens and images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions as Outputs,
)

from ..packed import Packed
from ..rectangles import rectangles


class Done(nn.Module):
    """In the place of the base model: what it has computed."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.pooler = getattr(base, "pooler", None)
        self.config = base.config
        self.states = torch.empty(0)

    def forward(self, *_: object, **__: object) -> Outputs:
        pooled = self.pooler(self.states) if self.pooler is not None else None
        return Outputs(last_hidden_state=self.states, pooler_output=pooled)


class Head(nn.Module):
    """The whole model, of which the base is done.

    Args:
        whole: of transformers; its base model is replaced.
        by_token: there is a class for each token, not for each text.
    """

    def __init__(self, whole: Any, *, by_token: bool) -> None:
        super().__init__()
        self.done = Done(whole.base_model)
        setattr(whole, whole.base_model_prefix, self.done)
        self.whole = whole
        self._by_token = by_token
        self._padding = getattr(whole.config, "pad_token_id", None) or 0

    def forward(self, batch: Packed, states: Tensor) -> Tensor:
        """[tokens, hidden] of packed rows, or [images, patches, hidden] -> [rows, classes]."""
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
