"""The family `transformers`: a Hugging Face module as it is, on packed rows, split among ranks.

transformers' own class is made on the meta device; its attention goes through one function, which
is registered with the library, into `batch.attend`; its linears become our parallel layers.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.auto import configuration_auto, modeling_auto

from ...model.errors import LoadError
from ..attention import Bias, Masking
from ..layers import ColumnParallelLinear, JoinedLinear
from ..packed import Packed
from ..parallelize import load_weights, split
from ..plan import Plan, Split, splits
from ..rectangles import rectangles
from ..shard import Shard
from .pipeline import cut_to_stage
from .plans import JOINED, KEYS_AND_VALUES, PLANS

NAME = "python_mp"
RECTANGLES = {"mpnet", "deberta-v2"}
"""Whose attention is not reached by `attend`, and knows no packed rows."""
BEGIN_BEHIND_PADDING = {"roberta", "xlm-roberta", "camembert", "mpnet"}
"""Whose positions begin at pad_token_id + 1."""
_present: ContextVar[Packed] = ContextVar("the batch that is computed")


def attend(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: None,  # noqa: ARG001 (the names are the library's)
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: Any = None,
    is_causal: bool | None = None,
    **unknown: object,
) -> tuple[Tensor, None]:
    """What transformers' modules call for attention.

    Args:
        q, k, v: [1, heads, tokens, head size] of packed rows, or [images, heads, patches, size].

    Returns:
        [1, tokens, heads, head size], or [images, patches, heads, head size]; and no weights.
    """
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    masking = Masking(bool(causal), sliding_window, scaling, softcap)
    if unknown.get("s_aux") is not None:
        raise LoadError("attention sinks are not computed here")
    batch = _present.get()
    heads, size = q.shape[1], v.shape[3]
    if not batch.is_ragged:
        together = nn.functional.scaled_dot_product_attention(
            q, k, v, scale=scaling, is_causal=masking.causal, enable_gqa=heads != k.shape[1]
        )
        return together.transpose(1, 2), None
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    return batch.attend(q, k, v, masking, position_bias).view(1, -1, heads, size), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


def read(path: Path) -> PretrainedConfig:
    """A checkpoint's config.json.

    Raises:
        LoadError: it is of no model that is known.
    """
    raw = json.loads(path.read_text())
    kind = raw.get("model_type")
    if kind not in configuration_auto.CONFIG_MAPPING:
        raise LoadError(f"{path}: transformers has no model_type {kind!r}")
    if raw.get("quantization_config"):
        raise LoadError(
            f"{path}: the checkpoint is quantised (quantization_config): take the original"
        )
    config: PretrainedConfig = configuration_auto.CONFIG_MAPPING[kind].from_dict(raw)
    return config


def check(config: PretrainedConfig, batch: Packed) -> None:
    """Raises InvalidInput for ids or lengths that the checkpoint has no embedding for."""
    if not batch.is_ragged:
        return
    ids, longest = batch["INPUT_IDS"], max(batch.lengths)
    if (most := _longest(config)) is not None and longest > most:
        text = f"a sequence has {longest} tokens; the model's limit is {most}"
        batch.refuse(batch.cu_seqlens.diff() == longest, text)
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= config.vocab_size:
        wrong = low if low < 0 else high
        text = f"INPUT_IDS holds {wrong}; ids are 0 to {config.vocab_size - 1}"
        batch.refuse(ids == wrong, text)  # Of others that are wrong it would not be true.


def _longest(config: PretrainedConfig) -> int | None:
    """Tokens of the longest text that has a position; None where positions have no end."""
    most: int | None = getattr(config, "max_position_embeddings", None)
    begins = config.model_type in BEGIN_BEHIND_PADDING
    return most - config.pad_token_id - 1 if begins and most is not None else most


class Encoder(nn.Module):
    """The base model.

    INPUT_IDS int32 [tokens] -> HIDDEN_STATES [tokens, hidden]
    PIXEL_VALUES [images, channels, height, width] -> HIDDEN_STATES [images, patches, hidden]
    """

    def __init__(self, shard: Shard, config: PretrainedConfig) -> None:
        super().__init__()
        self.is_last = shard.is_last
        self.model = skeleton(config)
        found = plan(config, self.model, shard.size)
        self.given = cut_to_stage(self.model, config, shard)
        here = {name for name, _ in self.model.named_modules()}
        split(self.model, {name: how for name, how in found.items() if name in here}, shard, JOINED)
        load_weights(self.model, shard)
        _finish(self.model)
        _bias_by_sequence(self.model)
        _local_widths(self.model)
        self._takes = inspect.signature(type(self.model).forward).parameters
        begins = config.model_type in BEGIN_BEHIND_PADDING
        self._first_position = config.pad_token_id + 1 if begins else 0
        self._has_types = bool(getattr(config, "type_vocab_size", 0))  # GPT-2 would add words.
        self._is_rectangular = config.model_type in RECTANGLES

    def forward(self, batch: Packed, hidden: Tensor | None) -> Tensor | dict[str, Tensor]:
        compute = self._in_rectangles if self._is_rectangular else self._together
        with _computing(batch):
            found = compute(batch, hidden)
        return {"HIDDEN_STATES": found} if self.is_last else found

    def _together(self, batch: Packed, hidden: Tensor | None) -> Tensor:
        if not batch.is_ragged:
            return self._call(hidden, pixel_values=batch["PIXEL_VALUES"])
        ids, positions = batch["INPUT_IDS"][None], batch.positions[None]
        return self._call(hidden, input_ids=ids, position_ids=positions)[0]

    def _in_rectangles(self, batch: Packed, hidden: Tensor | None) -> Tensor:
        ids, positions, found = batch["INPUT_IDS"], batch.positions, None
        for each in rectangles(batch.lengths, ids.device):
            values = self._call(
                None if hidden is None else each.take(hidden),
                input_ids=each.take(ids),
                position_ids=each.take(positions),
                attention_mask=each.mask.long(),
            )
            if found is None:
                found = values.new_empty(len(ids), values.shape[-1])
            each.put(values, found)
        assert found is not None
        return found

    def _call(self, hidden: Tensor | None, **arguments: Any) -> Tensor:
        if "position_ids" in arguments:
            arguments["position_ids"] = arguments["position_ids"] + self._first_position
        if self._has_types:
            arguments["token_type_ids"] = torch.zeros_like(arguments["input_ids"])
        arguments["use_cache"] = False
        known = {name: value for name, value in arguments.items() if name in self._takes}
        with self.given.giving(hidden):
            found: Tensor = self.model(**known)[0]
        return found


@contextmanager
def _computing(batch: Packed) -> Iterator[None]:
    token = _present.set(batch)
    try:
        yield
    finally:
        _present.reset(token)


def skeleton(config: PretrainedConfig) -> Any:
    """The module without weights, on the meta device but for what it computes from its config."""
    name = modeling_auto.MODEL_MAPPING_NAMES[config.model_type]
    kind = getattr(transformers, name if isinstance(name, str) else name[0])
    if hasattr(transformers, f"{kind.__name__.removesuffix('Model')}EncoderModel"):
        kind = getattr(transformers, f"{kind.__name__.removesuffix('Model')}EncoderModel")
    config._attn_implementation = "eager" if config.model_type in RECTANGLES else NAME
    options = inspect.signature(kind.__init__).parameters
    pooling = {"add_pooling_layer": False} if "add_pooling_layer" in options else {}
    with torch.device("meta"):
        return kind(config, **pooling).eval()


def _finish(model: Any) -> None:
    """Buffers that no checkpoint holds (rotary frequencies) are computed by the module's own code,
    which leaves alone what is marked as done."""
    for module in model.modules():
        module._is_hf_initialized = not module._non_persistent_buffers_set
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers[name]
            module._buffers[name] = torch.empty_like(buffer, device="cpu")
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    model.initialize_weights()


def _bias_by_sequence(model: Any) -> None:
    """T5 adds to its scores what depends on two rows' distance, and makes it for all tokens: too
    much for packed ones. Here it is made for each length, once in a batch."""
    for module in model.modules():
        if whole := getattr(module, "compute_bias", None):

            def for_batch(*_: object, whole: Any = whole, **__: object) -> Bias:
                return cache(lambda length: whole(length, length)[0])

            module.compute_bias = for_batch


def _local_widths(model: Any) -> None:
    """What attentions have noted of their width, where they do not see it by their linears."""
    for module in model.modules():
        if hasattr(module, "split_size"):  # GPT-2
            module.split_size = module.c_attn.widths[0] // 3
        if hasattr(module, "all_head_size"):
            linear = getattr(module, "q", None) or getattr(module, "query_proj", None)
            if isinstance(linear, ColumnParallelLinear | JoinedLinear):
                module.all_head_size = linear.out_features
                module.num_attention_heads = linear.out_features // module.attention_head_size


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
    found = splits(known, [name for name, _ in model.named_modules()])
    return {name: _with_heads(name, how, config, size) for name, how in found.items()}


def _with_heads(name: str, how: Split, config: PretrainedConfig, size: int) -> Split:
    if not re.search("(?i)att", name):
        return how
    return replace(how, cut=replace(how.cut, **_heads(name, config, size)))


def _heads(name: str, config: PretrainedConfig, size: int) -> dict[str, Any]:
    """What stays together in a linear of an attention."""
    heads: int = config.num_attention_heads
    groups: int = getattr(config, "num_key_value_heads", None) or heads
    given = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    width: int = given or config.hidden_size // heads
    if name.endswith("relative_attention_bias"):
        return {"unit": 1}
    if name.endswith("query_key_value"):
        return {"unit": 3 * width}
    shared = groups < size and size % groups == 0 and heads % size == 0
    if name.rpartition(".")[2] in KEYS_AND_VALUES:
        return {"unit": width, "shared": shared}
    return {"unit": width if shared else heads // groups * width}
