"""How long the device itself takes."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch


def device_seconds(call: Callable[[], object], rounds: int = 15) -> float:
    """The median of some calls, after three that warm up."""
    times: list[float] = []
    for _ in range(3 + rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times[3:])
