"""The function that transformers' modules call for attention, and the batch that it is for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, masking_utils
from transformers.masking_utils import AttentionMaskInterface

from ...model.errors import LoadError
from ..packed import Packed

NAME = "python_mp"
WITHOUT_EFFECT = {
    *("cache_position", "deterministic", "output_attentions", "output_hidden_states"),
    *("position_ids", "return_dict", "use_cache"),
}
"""On what attention computes here; modules hand them on."""


@dataclass
class Computation:
    """One batch on its way through a module."""

    batch: Packed
    calls: int = 0


_present: ContextVar[Computation] = ContextVar("the batch that is computed")


@contextmanager
def computing(batch: Packed, layers: int) -> Iterator[None]:
    """The batch that `attend` is for.

    Raises:
        LoadError: the module has not called it for each of its layers, so that rows of different
            sequences may have seen each other elsewhere.
    """
    token = _present.set(Computation(batch))
    try:
        yield
        calls = _present.get().calls
        if calls % layers or not calls:
            raise LoadError(
                f"the module called transformers' attention function {calls} times for {layers}"
                " layers: it mixes rows in another way, which packed rows cannot have"
            )
    finally:
        _present.reset(token)


def is_computing() -> bool:
    """Whether a module is called for a batch, and not for a reference."""
    return _present.get(None) is not None


def attend(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 (the names are the library's)
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: Any = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """What transformers' modules call for attention.

    Args:
        q, k, v: [1, heads, tokens, head size], of packed rows.

    Returns:
        [1, tokens, heads, head size]; and no weights.

    Raises:
        LoadError: it is asked for what is not computed here.
    """
    for name, value in {"attention_mask": attention_mask, **others}.items():
        if value is not None and name not in WITHOUT_EFFECT:
            raise LoadError(f"the module's attention wants {name}, which is not computed here")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    computation = _present.get()
    computation.calls += 1
    batch = computation.batch
    heads, size = q.shape[1], v.shape[3]
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    packed = batch.attend(
        q,
        k,
        v,
        causal=causal,
        window=sliding_window,
        scale=scaling,
        softcap=softcap,
        sinks=s_aux,
        bias=position_bias,
    )
    return packed.view(1, -1, heads, size), None


def no_mask(
    *_: object, config: Any, local_size: int | None = None, use_vmap: bool = False, **__: object
) -> None:
    """What the library calls for a mask: none is made, since `attend` is told what it says.

    Raises:
        LoadError: it says more.
    """
    in_chunks = local_size is not None and local_size == getattr(
        config, "attention_chunk_size", None
    )
    if use_vmap or in_chunks:  # True where the module adds a mask function of its own.
        raise LoadError(f"a {config.model_type} has a mask that packed rows cannot have")


def _packed_sequences(position_ids: Tensor) -> Tensor | None:
    """transformers looks for them in positions, for masks that are not made here, at each call; and
    waits for a GPU to know what it found."""
    return None if _present.get(None) else _find_packed_sequences(position_ids)


_find_packed_sequences = masking_utils.find_packed_sequence_indices
masking_utils.find_packed_sequence_indices = _packed_sequences
AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, no_mask)
