"""Products with a weight on a CPU: of few rows by a kernel of ours, of many by torch.

A product of one row is bound by reading the weight. torch's libraries need about twice as long as
a plain sum over the same bytes, ours (`kernels/products.h`) hardly longer, and it needs no packed
copy of the weight: it reads the one that is mapped from the file, which all ranks of a machine
share. Times over the products of SmolLM2-135M in float32, 538 MB, relative to that sum, on one
thread of an AMD Zen 5 with AVX-512 (on Intel's Sapphire Rapids MKL's are 1.0, 2.6 and 3.5):

|                        | 1 row | 8 rows | 32 rows |
|------------------------|-------|--------|---------|
| ours                   | 1.1   | 1.5    | 3.7     |
| ours, by AVX2          | 1.1   | 1.8    | 5.6     |
| torch: MKL             | 2.2   | 4.2    | 10      |
| oneDNN, packed weights | 1.7   | 1.8    | 3.7     |
"""

from __future__ import annotations

import sys
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

from .native import kernels
from .numerics import widened
from .panels import Panels

MOST_ROWS = {"avx512": 64, "avx2": 16, "baseline": 3}
"""With more MKL is as fast, on Intel's processors; on AMD's it is slow, whatever the rows."""
MOST_ROWS_BFLOAT16 = 12
"""Where the processor multiplies bfloat16, as torch then does."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, in the dtype of x.

    Args:
        x: [..., inputs].
        weight: [outputs, inputs], of the same dtype.
        bias: [outputs].
    """
    if _is_ours(x, weight):
        wide = None if bias is None else bias.float()
        return _multiply(x.float(), weight, wide).to(x.dtype)
    if widened(x):
        wide = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), wide).to(x.dtype)
    return F.linear(x, weight, bias)


def _is_ours(x: Tensor, weight: Tensor) -> bool:
    if kernels is None or weight.device.type != "cpu" or x.dtype != weight.dtype:
        return False
    if is_compiling():  # Sizes are symbols, which must not be compared.
        return False
    if isinstance(weight, Panels):
        return True
    rows = x.numel() // max(x.shape[-1], 1)
    return rows * weight.numel() > 0 and rows <= _most_rows(x.dtype)


@cache
def _most_rows(dtype: torch.dtype) -> int:
    if dtype not in (torch.float32, torch.bfloat16):
        return 0
    if dtype is torch.bfloat16 and not widened(torch.empty(0, dtype=dtype)):
        return MOST_ROWS_BFLOAT16
    best, is_amd = kernels.instruction_sets()[0], kernels.is_amd()
    return sys.maxsize if is_amd and best != "baseline" else MOST_ROWS[best]


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float32, of a weight in either type."""
    outputs, inputs = weight.shape
    if x.shape[-1] != inputs:
        raise ValueError(f"a weight of {inputs} columns cannot take {x.shape[-1]}")
    is_panels = isinstance(weight, Panels)
    x, held = x.contiguous(), weight.panels if isinstance(weight, Panels) else weight.contiguous()
    y = x.new_empty(*x.shape[:-1], outputs)
    kernels.multiply(
        y.data_ptr(),
        x.data_ptr(),
        held.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.numel() // outputs,
        outputs,
        inputs,
        weight.dtype is torch.bfloat16,
        torch.get_num_threads(),
        is_panels,
    )
    return y
