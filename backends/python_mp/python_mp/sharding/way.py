"""How numbers are combined by the kernel `combine`."""

from __future__ import annotations

from enum import IntEnum


class Way(IntEnum):
    """As `kernels/kernels.h` numbers them. a, b: rows; s: a number."""

    ADD = 0
    TIMES = 1
    SCALE = 2
    COPY = 3
    SILU = 4
    SILU_TIMES = 5
    """silu(a) b"""
    GELU = 6
    GELU_TANH = 7
