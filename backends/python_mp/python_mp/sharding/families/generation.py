"""A model that generates text: the hidden states of its rows, and logits of those that are asked
for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ...model.errors import LoadError
from ..gathering import VocabularyLinear
from ..layers import VocabParallelEmbedding
from ..packed import Packed
from ..panels import fits
from ..parallelize import load_weights
from ..running import Running
from ..sampling import Sampling, sample
from ..shard import Shard
from ..tied import Renamed, tied
from . import skeleton
from .heads import HIDDEN_STATES, Done
from .transformers import Encoder, sentences

SAMPLED = "sampled"
"""int32 [m]: the sequences whose last row is to be followed by a token."""


class Decoder(nn.Module):
    """A stage of a model: INPUT_IDS int32 [tokens] -> LOGITS float32 [m, vocabulary], the same on
    every rank of the last stage.

    Raises:
        LoadError: the model does not take packed rows, or transformers has none that generates.
    """

    def __init__(self, shard: Shard, config: PretrainedConfig) -> None:
        super().__init__()
        whole = skeleton.make(config, "generate")
        given = Renamed(shard.weights, tied(whole, shard.weights))
        shard = replace(shard, given=given)
        has_both = shard.is_first and shard.is_last and _is_tied(whole)
        self.encoder = Encoder(shard, config, tied=has_both)
        if not self.encoder.generates:
            raise LoadError(
                f"a {config.model_type} cannot generate text here: its rows do not only see what"
                " its attention shows them"
            )
        self.logits = None
        if shard.is_last:
            embedding = self.encoder.model.get_input_embeddings() if has_both else None
            with sentences(f"the head of a {config.model_type}"):
                self.logits = Logits(shard, whole, embedding)

    def take_kernels(self) -> None:
        self.encoder.take_kernels()

    def capture(self, most: int) -> Sequence[Sequence[int]]:
        return self.encoder.capture(most)

    def forward(self, batch: Packed, hidden: Tensor | None) -> Tensor | dict[str, Tensor]:
        found: Tensor | dict[str, Tensor] = self.encoder(batch, hidden)
        if self.logits is None or isinstance(found, Tensor):
            return found
        ends = batch.cu_seqlens[1:]
        last = ends[batch[SAMPLED].long()] if SAMPLED in batch else ends
        return {"LOGITS": self.logits(found[HIDDEN_STATES][last.long() - 1])}


def sampled(batch: Packed, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """LOGITS [m, vocabulary] -> what the step answers: see `Sampled.outputs`."""
    host = batch.host if isinstance(batch, Running) else batch
    return sample(outputs["LOGITS"], Sampling.of(batch, host)).outputs()


class Logits(nn.Module):
    """transformers' model for the task, of which the base is done: hidden states [m, hidden] ->
    float32 [m, vocabulary].

    Args:
        whole: it, without weights; changed in place.
        embedding: the base's, where it is tied to the head and in this stage.
    """

    def __init__(self, shard: Shard, whole: Any, embedding: nn.Module | None) -> None:
        super().__init__()
        self.done = Done(whole.base_model)
        linear = whole.get_output_embeddings()
        name = next(name for name, part in whole.named_modules() if part is linear)
        setattr(whole, whole.base_model_prefix, self.done)
        skeleton.finish(whole, shard.device)
        whole.set_submodule(name, VocabularyLinear(shard, name, _shared(embedding)))
        load_weights(whole, shard.weights)
        self.whole = whole

    def forward(self, states: Tensor) -> Tensor:
        self.done.states = states[None]
        try:
            with sentences(f"a {type(self.whole).__name__} without its base"):
                found: Tensor = self.whole(use_cache=False).logits[0].float()
        finally:
            self.done.states = torch.empty(0)
        return found


def _shared(embedding: nn.Module | None) -> Tensor | None:
    """Its weight, unless the head is to have one that lies in panels."""
    if embedding is None:
        return None
    weight = embedding.weight
    assert isinstance(weight, Tensor)
    lies_right = isinstance(embedding, VocabParallelEmbedding) or not fits(weight)
    return weight if lies_right else None


def _is_tied(whole: Any) -> bool:
    head, embedding = whole.get_output_embeddings(), whole.get_input_embeddings()
    return head is not None and head.weight is embedding.weight
