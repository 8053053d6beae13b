"""How transformers' modules are split that do not say it themselves (`base_model_tp_plan`), by
model_type. Names are those in the base model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from ...model.errors import LoadError
from ..cut import Cut
from ..split_plan import Plan, Split, splits

_BERT: Plan = {
    "*.attention.self.query": "colwise",
    "*.attention.self.key": "colwise",
    "*.attention.self.value": "colwise",
    "*.attention.output.dense": "rowwise",
    "*.intermediate.dense": "colwise",
    "*.output.dense": "rowwise",
    "embeddings.word_embeddings": "vocabulary",
}
_SPLIT_ATTENTION: Plan = {
    "*.q_proj": "colwise",
    "*.k_proj": "colwise",
    "*.v_proj": "colwise",
}
_VIT: Plan = {**_SPLIT_ATTENTION, "*.o_proj": "rowwise", "*.fc1": "colwise", "*.fc2": "rowwise"}
_CLIP: Plan = {
    **_SPLIT_ATTENTION,
    "*.self_attn.out_proj": "rowwise",
    "*.fc1": "colwise",
    "*.fc2": "rowwise",
}
PLANS: Mapping[str, Plan] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": {
        "*.attention.q_lin": "colwise",
        "*.attention.k_lin": "colwise",
        "*.attention.v_lin": "colwise",
        "*.attention.out_lin": "rowwise",
        "*.ffn.lin1": "colwise",
        "*.ffn.lin2": "rowwise",
        "embeddings.word_embeddings": "vocabulary",
    },
    "modernbert": {
        "*.attn.Wqkv": Split("colwise", Cut(parts=3)),
        "*.attn.Wo": "rowwise",
        "*.mlp.Wi": Split("colwise", Cut(parts=2)),
        "*.mlp.Wo": "rowwise",
    },
    "gpt2": {
        "*.attn.c_attn": Split("colwise", Cut(parts=3)),
        "*.attn.c_proj": "rowwise",
        "*.mlp.c_fc": "colwise",
        "*.mlp.c_proj": "rowwise",
    },
    "t5": {
        "*.SelfAttention.q": "colwise",
        "*.SelfAttention.k": "colwise",
        "*.SelfAttention.v": "colwise",
        "*.SelfAttention.o": "rowwise",
        "*.SelfAttention.relative_attention_bias": "colwise",
        "*.DenseReluDense.wi*": "colwise",
        "*.DenseReluDense.wo": "rowwise",
    },
    "mpnet": {
        "*.attn.q": "colwise",
        "*.attn.k": "colwise",
        "*.attn.v": "colwise",
        "*.attn.o": "rowwise",
        "encoder.relative_attention_bias": "colwise",
        "*.intermediate.dense": "colwise",
        "*.output.dense": "rowwise",
        "embeddings.word_embeddings": "vocabulary",
    },
    "deberta-v2": {
        "*.self.query_proj": "colwise",
        "*.self.key_proj": "colwise",
        "*.self.value_proj": "colwise",
        "*.self.pos_key_proj": "colwise",
        "*.self.pos_query_proj": "colwise",
        "*.attention.output.dense": "rowwise",
        "*.intermediate.dense": "colwise",
        "*.output.dense": "rowwise",
    },
    "vit": _VIT,
    "dinov2": {
        **_VIT,
        "*.mlp.weights_in": Split("colwise", Cut(parts=2)),
        "*.mlp.weights_out": "rowwise",
    },
    "siglip_vision_model": _CLIP,
    "clip_vision_model": _CLIP,
}
KEYS_AND_VALUES = {"key", "value", "k_proj", "v_proj", "k_lin", "v_lin", "k", "v"}
JOINED = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
)
"""Linears of the same input."""


def plan(config: PretrainedConfig, model: nn.Module, size: int) -> dict[str, Split]:
    """The model's own plan, or that of plans.py, with what stays together: heads, and for grouped
    queries those of one key-value head."""
    given: Plan | None = getattr(config, "base_model_tp_plan", None) or PLANS.get(config.model_type)
    if given is None:
        if size == 1:
            return {}
        raise LoadError(f"it is not known how a {config.model_type} is split; use one rank a stage")
    whole = "replicated_with_grad_allreduce"  # What differs from replicated is training.
    known = {name: "replicated" if way == whole else way for name, way in given.items()}
    modules = dict(model.named_modules())
    found = splits(known, modules)
    return {
        name: _with_heads(name, how, modules[name], config, size) for name, how in found.items()
    }


def _with_heads(name: str, how: Split, layer: Any, config: PretrainedConfig, size: int) -> Split:
    """With what stays together in a layer of an attention: heads."""
    if not re.search("(?i)att", name):
        return how
    heads: int = config.num_attention_heads
    groups: int = getattr(config, "num_key_value_heads", None) or heads
    shared = groups < size and size % groups == 0 and heads % size == 0
    of_keys = name.rpartition(".")[2] in KEYS_AND_VALUES
    width = layer.weight.shape[_dimension(layer, how)] // how.cut.parts
    unit = width // (groups if of_keys or not shared else heads)
    return replace(how, cut=replace(how.cut, unit=unit, shared=shared and of_keys))


def _dimension(layer: Any, how: Split) -> int:
    """Of the weight, that which is split."""
    is_linear = type(layer) is nn.Linear  # An embedding is [ids, width], a Conv1D [in, out].
    return int((how.way == "colwise") != is_linear)
