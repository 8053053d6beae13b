"""Products with a weight on a CPU.

A weight that the build wrote in panels (`panels.py`) is multiplied by `kernels/panels.h`, whatever
the rows. One that lies in rows, of sizes that panels do not fit, is multiplied by
`kernels/products.h` where the rows are few, and else by torch. A product of one row is bound by
reading the weight, which all ranks of a machine have from one mapped file. GFLOPS of products with
weights [576 to 3072, 576 or 1536] in float32, processor time of one thread of an AMD Zen 4, whose
peak is 114 (medians of 7 in turns, other work beside it):

|                        | 1 row    | 8 rows | 32 rows   | 512 rows   |
|------------------------|----------|--------|-----------|------------|
| ours, in panels        | 10 to 11 | 72     | 99 to 106 | 103 to 110 |
| ours, in rows          | 8 to 9   | 44     | 75 to 84  | -          |
| oneDNN, packed weights | 5 to 7   | 49     | 71 to 92  | 103 to 107 |
| torch: mm              | -        | -      | 53 to 69  | 87 to 90   |
"""

from __future__ import annotations

import sys
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

from .native import address, kernels
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
        wide = None if bias is None else bias.float().contiguous()
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
    panels = weight.panels if isinstance(weight, Panels) else None
    x, held = x.contiguous(), weight.contiguous() if panels is None else panels
    y = x.new_empty(*x.shape[:-1], outputs)
    rows = y.numel() // outputs
    kernels.multiply(
        address(y, torch.float32, rows * outputs),
        address(x, torch.float32, rows * inputs),
        address(held, weight.dtype, outputs * inputs),
        address(bias, torch.float32, outputs),
        rows,
        outputs,
        inputs,
        weight.dtype is torch.bfloat16,
        torch.get_num_threads(),
        panels is not None,
    )
    return y
