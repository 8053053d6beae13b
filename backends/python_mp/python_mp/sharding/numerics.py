"""Products in 16-bit dtypes on processors that have no instructions for them."""

from __future__ import annotations

import torch
from torch import Tensor

_WIDEN = {
    torch.bfloat16: not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: not torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}


def widened(x: Tensor) -> bool:
    """Whether products of `x` are better done in float32 and rounded.

    On a CPU without instructions for them torch multiplies 16-bit numbers one element at a time,
    ten times slower than float32. Widening the operands and rounding the float32 sums gives the
    same result, since that is how such products are summed anyway.
    """
    return _WIDEN.get(x.dtype, False) and x.device.type == "cpu"
