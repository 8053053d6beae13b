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
from ..split_plan import WAYS, Plan, Split, splits, unused

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
_VIT: Plan = {
    **_SPLIT_ATTENTION,
    "*.o_proj": "rowwise",
    "*.fc1": "colwise",
    "*.fc2": "rowwise",
    "*.mlp.weights_in": Split("colwise", Cut(parts=2)),  # gated, in DINOv2
    "*.mlp.weights_out": "rowwise",
    "embeddings.word_embeddings": "vocabulary",
}
_CLIP: Plan = {
    **_SPLIT_ATTENTION,
    "*.self_attn.out_proj": "rowwise",
    "*.fc1": "colwise",
    "*.fc2": "rowwise",
}
_LLAMA: Plan = {
    **_SPLIT_ATTENTION,
    "*.o_proj": "rowwise",
    "*.gate_proj": "colwise",
    "*.up_proj": "colwise",
    "*.down_proj": "rowwise",
    "embed_tokens": "vocabulary",
    "embeddings.word_embeddings": "vocabulary",
}
_T5: Plan = {
    "*.SelfAttention.q": "colwise",
    "*.SelfAttention.k": "colwise",
    "*.SelfAttention.v": "colwise",
    "*.SelfAttention.o": "rowwise",
    "*.SelfAttention.relative_attention_bias": "colwise",
    "*.DenseReluDense.wi*": "colwise",
    "*.DenseReluDense.wo": "rowwise",
}
_XLM: Plan = {
    "attentions.*.q_lin": "colwise",
    "attentions.*.k_lin": "colwise",
    "attentions.*.v_lin": "colwise",
    "attentions.*.out_lin": "rowwise",
    "ffns.*.lin1": "colwise",
    "ffns.*.lin2": "rowwise",
    "embeddings": "vocabulary",
}
LIKE_BERT = (
    *(
        "bert",
        "bert-generation",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "esm",
        "layoutlm",
    ),
    *("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
    *("splinter", "xlm-roberta", "xlm-roberta-xl"),
)
LIKE_VIT = (
    *("deit", "dinov2", "dinov2_with_registers", "ijepa", "vit"),
    *("vit_msn", "jina_embeddings_v3", "yolos"),
)
LIKE_CLIP = (
    *("biogpt", "chinese_clip_vision_model", "clip_text_model", "clip_vision_model", "opt"),
    *("siglip_text_model", "siglip_vision_model"),
)
PLANS: Mapping[str, Plan] = {
    **dict.fromkeys(LIKE_BERT, _BERT),
    **dict.fromkeys(LIKE_VIT, _VIT),
    **dict.fromkeys(LIKE_CLIP, _CLIP),
    **dict.fromkeys(("dinov3_vit", "gte", "nomic_bert", "qwen3_vl_text", "stablelm"), _LLAMA),
    **dict.fromkeys(("mt5", "t5", "umt5"), _T5),
    **dict.fromkeys(("flaubert", "xlm"), _XLM),
    "albert": {
        "*.attention.query": "colwise",
        "*.attention.key": "colwise",
        "*.attention.value": "colwise",
        "*.attention.dense": "rowwise",
        "*.ffn": "colwise",
        "*.ffn_output": "rowwise",
        "embeddings.word_embeddings": "vocabulary",
    },
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
WORDS = {
    "replicated_with_grad_allreduce": "replicated",  # It differs in training.
    "replicate": "replicated",
    "embedding_rowwise": "vocabulary",
}
WHOLE_ROWS = {"colwise_gather_output", "rowwise_split_input"}
EMBEDDING = "embed_tokens"
EXPERTS = {
    "moe_tp_experts",
    "packed_colwise",
    "packed_rowwise",
    "grouped_gemm",
    "moe_identity_expert",
}


def plan(
    config: PretrainedConfig, model: nn.Module, size: int, *, tied: bool = False
) -> dict[str, Split]:
    """The model's own plan, or that of plans.py, with what stays together: heads, and for grouped
    queries those of one key-value head.

    Args:
        tied: a head multiplies with the embedding's weight.

    Raises:
        LoadError: there is none, or a value of it is not known, and there are ranks to split it
            among.
    """
    own: Plan | None = getattr(config, "base_model_tp_plan", None)
    given = PLANS.get(config.model_type) or own
    one = f"use one rank a stage (tensor_parallel_size 1) for a {config.model_type}"
    if given is None:
        if size == 1:
            return {}
        raise LoadError(f"it is not known how it is split: {one}")
    modules = dict(model.named_modules())
    names = [*modules, *(name for name, _ in model.named_parameters())]
    left_out = set(unused(given, names))
    given = {name: how for name, how in given.items() if name not in left_out}
    if size > 1 and EXPERTS & set(given.values()):
        raise LoadError(f"its experts (MoE) are not split: {one}")
    if type(modules.get(EMBEDDING)) is nn.Embedding:  # Plans of decoders leave out the largest.
        given = {EMBEDDING: Split("vocabulary", tied=tied), **given}
    try:
        found = splits(_known(given, size), modules)
    except LoadError as error:
        raise LoadError(f"{error}: {one}") from None
    return {
        name: _with_heads(name, how, modules[name], config, size) for name, how in found.items()
    }


def _known(given: Plan, size: int) -> Plan:
    """With our words for what is the same here; a single rank has all of what we do not know."""
    known = {
        name: WORDS.get(how, how) if isinstance(how, str) else how for name, how in given.items()
    }
    if size > 1:
        return known
    return {name: how for name, how in known.items() if isinstance(how, Split) or how in WAYS}


def _with_heads(name: str, how: Split, layer: Any, config: PretrainedConfig, size: int) -> Split:
    """With what stays together in a layer of an attention: heads."""
    if size == 1 or how.way in WHOLE_ROWS or not re.search("(?i)att", name):
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
