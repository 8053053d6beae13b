"""transformers' own class without weights, and what has to be made good once it has a part of
them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from ...model.errors import LoadError
from ..attention import Bias
from ..layers import ColumnParallelLinear, JoinedLinear
from .attending import NAME
from .task import Kind

CLASSES = {
    mapping: getattr(modeling_auto, mapping)
    for mapping in dir(modeling_auto)
    if mapping.endswith("_MAPPING_NAMES")
}
BASE: Mapping[str, Any] = modeling_auto.MODEL_MAPPING_NAMES
OF_TEXTS: Mapping[str, Any] = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
OF_TOKENS: Mapping[str, Any] = modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
OF_IMAGES: Mapping[str, Any] = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
MAPPINGS: Mapping[Kind | None, Mapping[str, Any]] = {
    None: BASE,
    "embed": BASE,
    "rerank": OF_TEXTS,
    "classify": {**OF_IMAGES, **OF_TEXTS},
    "tokens": OF_TOKENS,
}
RECTANGLES = {"mpnet", "deberta-v2"}
"""Whose attention is not reached by `attend`, and knows no packed rows."""


def is_of(name: str, model_type: str) -> bool:
    """Whether transformers' class of this name is one of the model_type's."""
    found = [mapping.get(model_type) for mapping in CLASSES.values()]
    return any(name == each or (isinstance(each, tuple | list) and name in each) for each in found)


def kind(config: PretrainedConfig, task: Kind | None = None) -> tuple[Any, dict[str, Any]]:
    """The class for the task, and what it is made with.

    Raises:
        LoadError: transformers has no such model for it.
    """
    name = MAPPINGS[task].get(config.model_type)
    if name is None:
        raise LoadError(f"transformers has no {config.model_type} for the task {task}")
    found = getattr(transformers, name if isinstance(name, str) else name[0])
    encoder = f"{found.__name__.removesuffix('Model')}EncoderModel"
    if MAPPINGS[task] is BASE and hasattr(transformers, encoder):  # T5's own has a decoder.
        found = getattr(transformers, encoder)
    options = inspect.signature(found.__init__).parameters
    return found, {"add_pooling_layer": False} if "add_pooling_layer" in options else {}


def make(config: PretrainedConfig, task: Kind | None = None) -> Any:
    """The module without weights, on the meta device but for what it computes from its config."""
    found, options = kind(config, task)
    config._attn_implementation = "eager" if config.model_type in RECTANGLES else NAME
    with torch.device("meta"):
        return found(config, **options).eval()


def finish(model: Any, device: torch.device) -> None:
    """Buffers that no checkpoint holds (rotary frequencies) are computed by the module's own code,
    which leaves alone what is marked as done."""
    for module in model.modules():
        module._is_hf_initialized = not module._non_persistent_buffers_set
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers[name]
            module._buffers[name] = torch.empty_like(buffer, device=device)
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    model.initialize_weights()


def bias_by_sequence(model: Any) -> None:
    """T5 adds to its scores what depends on two rows' distance, and makes it for all tokens: too
    much for packed ones. Here it is made for each length, once in a batch."""
    for module in model.modules():
        if whole := getattr(module, "compute_bias", None):

            def for_batch(*_: object, whole: Any = whole, **__: object) -> Bias:
                return cache(lambda length: whole(length, length)[0])

            module.compute_bias = for_batch


def local_widths(model: Any) -> None:
    """What attentions have noted of their width, where they do not see it by their linears."""
    for module in model.modules():
        if hasattr(module, "split_size"):  # GPT-2
            module.split_size = module.c_attn.widths[0] // 3
        if hasattr(module, "all_head_size"):
            linear = getattr(module, "q", None) or getattr(module, "query_proj", None)
            if isinstance(linear, ColumnParallelLinear | JoinedLinear):
                module.all_head_size = linear.out_features
                module.num_attention_heads = linear.out_features // module.attention_head_size
