"""A tiny random model of nearly any model_type that transformers has."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from tests.support.families import Family

_SIZES = {
    48: "hidden_size d_model n_embd dim embed_dim embedding_size emb_dim projection_dim",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads"
    " decoder_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts",
    3: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers"
    " num_decoder_layers depth",
    72: "intermediate_size d_ff n_inner hidden_dim ffn_dim encoder_ffn_dim decoder_ffn_dim"
    " ffn_hidden_size mlp_dim d_inner",
    99: "vocab_size vocab_size_per_layer_input",
    128: "max_position_embeddings n_positions max_seq_len max_sequence_length n_ctx",
    32: "image_size moe_intermediate_size shared_expert_intermediate_size",
    8: "patch_size",
    16: "head_dim sliding_window attention_head_size",
    12: "d_kv",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok moe_topk moe_k top_k type_vocab_size"
    " eos_token_id sep_token_id n_langs",
    1: "bos_token_id cls_token_id",
    0: "pad_token_id",
}
_SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
_MAY_BE_NONE = {name for name in _SMALL if name.endswith("_token_id")} | {
    *("n_inner", "num_key_value_heads"),
}
_SWIN = {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 16, "window_size": 4, "patch_size": 4}
_CONVOLUTIONS = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 48], "patch_size": 4}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_MORE: Mapping[str, Mapping[str, Any]] = {
    "albert": {"embedding_size": 32},
    "bloom": {"hidden_size": 64},
    "codegen": {"rotary_dim": 8, "n_inner": 192},
    "convnext": _CONVOLUTIONS,
    "convnextv2": _CONVOLUTIONS,
    "deberta": {**_DEBERTA, "max_relative_positions": 16},
    "deberta-v2": {**_DEBERTA, "position_buckets": 16, "share_att_key": True},
    "donut-swin": _SWIN,
    "esm": {
        "vocab_size": 99,
        "position_embedding_type": "rotary",
        "pad_token_id": 1,
        "mask_token_id": 32,
    },
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granite": {"embedding_multiplier": 12.0, "residual_multiplier": 0.5},
    "helium": {"head_dim": 12},
    "hunyuan_v1_dense": {"head_dim": 16},
    "mobilebert": {"num_feedforward_networks": 1, "num_hidden_layers": 2},
    "mpnet": {"pad_token_id": 1},
    "opt": {"word_embed_proj_dim": 32},
    "stablelm": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "swin": _SWIN,
    "swinv2": {**_SWIN, "image_size": 32},
    "xmod": {"default_language": "en_XX"},
}


def tiny(model_type: str) -> Family:
    """By the usual names of sizes, where its config has them."""
    from transformers import AutoConfig

    config = type(AutoConfig.for_model(model_type))
    usual = config().to_dict()
    names = usual.keys() | inspect.signature(config.__init__).parameters.keys()
    values = {name: _SMALL[name] for name in names & _SMALL.keys() if _is_size(usual, name)}
    for name in ("layer_types", "mlp_layer_types"):  # Three layers, of all types that there are.
        if types := usual.get(name):
            values[name] = (list(dict.fromkeys(types)) * 3)[:3]
    values |= _MORE.get(model_type, {})
    return Family(_class(model_type), config.__name__, values, "eager")


def _is_size(usual: Mapping[str, Any], name: str) -> bool:
    said = usual.get(name)
    return type(said) in (int, float) or (said is None and name in _MAY_BE_NONE)


def _class(model_type: str) -> str:
    from transformers import AutoConfig

    from python_mp.sharding.families import skeleton

    found, _ = skeleton.kind(AutoConfig.for_model(model_type))
    name: str = found.__name__
    return name
