"""transformers' attention over packed rows on a GPU, for its modules as they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

LONGEST = 128
"""Tokens of the longest text here; a server would keep graphs for several."""


class Lengths:
    """Of the batch on its way through the module: int32 [sequences + 1], for `attend`."""

    cu_seqlens: Tensor


def attend(
    _module: Any, q: Tensor, k: Tensor, v: Tensor, _mask: Any, **_: Any
) -> tuple[Tensor, None]:
    """q, k, v: [1, heads, tokens, size]; returns [1, tokens, heads, size]."""
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
    cu = Lengths.cu_seqlens
    out = varlen_attn(q, k, v, cu, cu, LONGEST, LONGEST)
    assert isinstance(out, Tensor)
    return out[None], None


AttentionInterface.register("packed", attend)
AttentionMaskInterface.register("packed", lambda *_, **__: None)
