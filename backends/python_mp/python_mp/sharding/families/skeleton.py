"""transformers' own class without weights, and what has to be made good once it has a part of
them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto

from ...model.errors import LoadError
from ..attention import Bias
from ..layers import ColumnParallelLinear, JoinedLinear
from . import arrangement
from .attending import NAME
from .plans import PLANS
from .task import Kind

CLASSES = {
    mapping: getattr(modeling_auto, mapping)
    for mapping in dir(modeling_auto)
    if mapping.endswith("_MAPPING_NAMES")
}
BASE: Mapping[str, Any] = modeling_auto.MODEL_MAPPING_NAMES
OF_TEXTS: Mapping[str, Any] = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
OF_TOKENS: Mapping[str, Any] = modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
GENERATING: Mapping[str, Any] = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
OF_IMAGES: Mapping[str, Any] = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
MAPPINGS: Mapping[Kind | None, Mapping[str, Any]] = {
    None: BASE,
    "embed": BASE,
    "rerank": OF_TEXTS,
    "classify": {**OF_IMAGES, **OF_TEXTS},
    "tokens": OF_TOKENS,
    "generate": GENERATING,
}
NOTED: Mapping[tuple[str, ...], set[str]] = {
    ("query", "q_proj", "q_lin", "q", "query_proj"): {
        *("num_heads", "n_heads", "num_attention_heads"),
        *("all_head_size", "embed_dim", "hidden_size", "inner_dim"),
    },
    ("key", "k_proj", "k_lin", "k", "key_proj"): {"num_key_value_heads", "num_kv_heads"},
}
"""What attentions note, by their linears (each has one of a line)."""


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
    return found, _options(found)


def _options(found: Any) -> dict[str, Any]:
    pools = "add_pooling_layer" in inspect.signature(found.__init__).parameters
    return {"add_pooling_layer": False} if pools else {}


def parts(config: PretrainedConfig) -> str:
    """Of a model of texts and of something else: which it has, and how one is got. Its class for
    images takes the model as it is."""
    names = sorted(name for name in config.sub_configs if getattr(config, name, None) is not None)
    if "text_config" not in names or len(names) < 2:
        return ""
    if any(name.endswith("ForImageClassification") for name in config.architectures or ()):
        return ""
    types = (getattr(config, name).model_type for name in names)
    classes = [BASE[each] for each in types if isinstance(BASE.get(each), str)]
    how = " or ".join(f"{each}.from_pretrained(FOLDER).save_pretrained(PART)" for each in classes)
    return f" ({', '.join(names)}): save the one that you want by itself" + f", as {how}" * bool(
        how
    )


def in_one(config: PretrainedConfig, task: Kind | None) -> bool:
    """Whether hidden states and classes are computed in one, by one rank: of images, where the
    model is not split. What lies between the two has another shape in each family."""
    if task != "classify" or config.model_type in PLANS:
        return False
    return bool(kind(config, task)[0].main_input_name == "pixel_values")


def rows(config: PretrainedConfig, task: Kind | None = None) -> arrangement.Rows:
    """How what the task needs of the model takes a batch."""
    found, _ = kind(config, task if in_one(config, task) else None)
    return arrangement.rows(config, found)


def make(config: PretrainedConfig, task: Kind | None = None) -> Any:
    """The module without weights, on the meta device but for what it computes from its config."""
    found, options = kind(config, task)
    own = "sdpa" if found._supports_sdpa else "eager"
    config._attn_implementation = NAME if rows(config, task) == "packed" else own
    with torch.device("meta"):
        return found(config, **options).eval()


@torch.inference_mode(False)
@torch.no_grad()
def finish(model: Any, device: torch.device) -> None:
    """Buffers that no checkpoint holds (rotary frequencies) are computed by the module's own code.
    What it does to all else is lost, since weights are loaded only then."""
    empty: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        module._is_hf_initialized = not module._non_persistent_buffers_set
        for name in module._non_persistent_buffers_set:
            buffer = torch.empty_like(module._buffers[name], device=device)
            module._buffers[name] = empty[f"{path}.{name}".lstrip(".")] = buffer
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    model.initialize_weights()
    buffers = dict(model.named_buffers())
    if left := [name for name, was in empty.items() if buffers[name] is was and not was._version]:
        _fill(model, left)


def _fill(model: Any, names: Iterable[str]) -> None:
    """What a module computes only when it is made: with another one, of memory that nobody
    touches, apart from its buffers."""
    with no_init_weights():
        made = type(model)(model.config, **_options(type(model)))
    buffers = dict(model.named_buffers())
    for name in names:
        buffers[name].copy_(made.get_buffer(name))


def bias_by_sequence(model: Any) -> None:
    """T5 adds to its scores what depends on two rows' distance, and makes it for all tokens: too
    much for packed ones. Here it is made for each length, once in a batch."""
    for module in model.modules():
        if whole := getattr(module, "compute_bias", None):

            def for_batch(*_: object, whole: Any = whole, **__: object) -> Bias:
                return cache(lambda length: whole(length, length)[0])

            module.compute_bias = for_batch


def local_widths(model: Any, whole: Mapping[str, int]) -> None:
    """What attentions have noted of their heads and width, where they do not see it by their
    linears: as much of it as this rank has of the linear's columns.

    Args:
        whole: the columns of each linear before it was split.
    """
    for path, module in model.named_modules():
        if isinstance(joined := getattr(module, "c_attn", None), ColumnParallelLinear):
            module.split_size = joined.widths[0] // 3  # GPT-2
        for linears, noted in NOTED.items():
            for linear in linears:
                mine = getattr(module, linear, None)
                if isinstance(mine, ColumnParallelLinear | JoinedLinear):
                    all_of_it = whole[f"{path}.{linear}"]
                    for name in noted & vars(module).keys():
                        setattr(
                            module, name, getattr(module, name) * mine.out_features // all_of_it
                        )
