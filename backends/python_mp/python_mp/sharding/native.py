"""The C kernels of `kernels/`, where they were compiled; else torch computes, more slowly.

They run on OpenMP's threads, which are torch's own: the library is loaded once in a process, and a
second set of threads would wait for the same cores.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch  # Also since its OpenMP is to be the one in the process.
from torch import Tensor

try:
    from . import _kernels

    _compiled = Path(_kernels.__file__).stat().st_mtime
    if any(
        file.stat().st_mtime > _compiled for file in Path(__file__).parent.glob("kernels/*.[ch]")
    ):
        raise ImportError("_kernels was compiled from older sources: run `make install`")
except ImportError as error:
    logging.getLogger(__name__).warning(
        "few rows are computed by torch, which is far slower than the C extension: %s", error
    )
    _kernels = None  # type: ignore[assignment]

kernels = _kernels


def address(x: Tensor | None, dtype: torch.dtype, count: int) -> int:
    """Where a kernel finds so many numbers, one behind the other; 0 for None.

    Raises:
        ValueError: they are others. A kernel sees no more than this, and would read beyond.
    """
    if x is None:
        return 0
    if x.dtype is dtype and x.numel() == count and x.is_cpu and x.is_contiguous():
        return x.data_ptr()
    raise ValueError(f"a kernel takes {count} numbers of {dtype} without gaps, not {_named(x)}")


def address_of_rows(x: Tensor) -> int:
    """The same of float32 [rows, heads, head size], whose rows may lie apart."""
    in_rows = x.is_contiguous() or x.stride()[1:] == (x.shape[2], 1)
    if x.dtype is torch.float32 and x.is_cpu and in_rows:
        return x.data_ptr()
    raise ValueError(f"a kernel takes rows of torch.float32 without gaps, not {_named(x)}")


def _named(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape)} of strides {list(x.stride())} on {x.device}"
