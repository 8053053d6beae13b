"""How transformers' modules are split that do not say it themselves (`base_model_tp_plan`), by
model_type. Names are those in the base model."""

from __future__ import annotations

from collections.abc import Mapping

from ..cut import Cut
from ..plan import Plan, Split

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
