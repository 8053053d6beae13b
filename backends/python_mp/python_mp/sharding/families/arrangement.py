"""How a model of transformers takes a batch: its rows packed, or side by side in rectangles."""

from __future__ import annotations

import inspect
from collections.abc import Set
from typing import Any, Literal

from transformers import PretrainedConfig

from ...model.errors import LoadError

Rows = Literal["packed", "rectangles", "images"]
"""Of texts end to end, of texts in rectangles, or of images, which are of one size."""

PACKED: Set[str] = {"t5", "mt5", "umt5", "biogpt", "opt"}
"""They call the library's attention function, though their classes do not say so."""
MASKED: Set[str] = {"mpnet", "deberta", "deberta-v2"}
"""Whose rectangles may have padding: with a mask they compute for a text what they do without. All
others get texts of one length."""
UNPACKED: Set[str] = {
    "doge",  # a mask of its own
    "esm",  # embeddings are scaled by how many masked tokens there are
    *("lfm3", "minimax"),  # layers without attention
    "llama4_text",  # attention within chunks
    "mobilebert",  # embeddings of three tokens each
}
"""They call it, and do what packed rows cannot have."""
PATCHES = {"spatial_shapes"}
"""Inputs that no model does without whose class has them, though it says so: pictures of several
sizes come in patches, and these say how many."""
BY_LENGTH = {"longrope"}
"""Rotary positions that turn otherwise in a batch with a long text. ("dynamic" does, too, but only
beyond the model's longest.)"""


def rows(config: PretrainedConfig, kind: Any) -> Rows:
    """How a class of transformers, `kind`, takes them.

    Packed rows need an attention that is reached by `attend`, and nothing else that sees a text's
    other rows: no state, no decoder. That there is nothing else `isolation` shows.

    Raises:
        LoadError: it takes something else.
    """
    needed = _needed(kind)
    if needed & PATCHES:
        raise LoadError(
            f"a {config.model_type} takes pictures of several sizes in patches"
            f" ({', '.join(PATCHES)}), which is not done here: take a checkpoint for one size, as"
            " siglip in the place of siglip2, or serve it as a module of your own"
        )
    if needed - {"input_ids"} and needed - {"pixel_values"}:
        raise LoadError(
            f"a {config.model_type} takes {', '.join(sorted(needed))}; a module of your own can,"
            " the family transformers has INPUT_IDS or PIXEL_VALUES"
        )
    if needed == {"pixel_values"}:
        return "images"
    reached = kind._supports_attention_backend or config.model_type in PACKED
    mixes = kind._is_stateful or (config.is_encoder_decoder and not _is_encoder(kind))
    unpacked = mixes or config.model_type in UNPACKED or _rotary(config) & BY_LENGTH
    return "packed" if reached and not unpacked else "rectangles"


def _needed(kind: Any) -> set[str]:
    parameters = inspect.signature(kind.forward).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [each for each in parameters if each.kind in plain and each.name != "self"]
    needed = {each.name for each in named if each.default is each.empty or each.name in PATCHES}
    return needed | {kind.main_input_name}


def _rotary(config: PretrainedConfig) -> set[str]:
    """Types of rotary positions; layers may have different ones."""
    said = getattr(config, "rope_parameters", None) or {}
    each = [said, *(value for value in said.values() if isinstance(value, dict))]
    return {str(one["rope_type"]) for one in each if "rope_type" in one}


def _is_encoder(kind: Any) -> bool:
    name: str = kind.__name__
    return name.endswith(("EncoderModel", "Encoder"))
