"""One stream in process: how near it comes to reading the weights once a token, and two ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from time import perf_counter

import torch

from python_mp.front.local import Local

from .decoder_replicas import answered, decoder, weights_nbytes
from .goals import Record, at_most, in_turns, ratios, spread
from .random_prompts import different

TOKENS = 64
SUMS = 5
TURNS = 5
"""Each is short."""


def run() -> Iterator[Record]:
    blocks = {"kv_cache_blocks": 64}
    with decoder(1, **blocks) as one, decoder(2, **blocks) as two:
        sides: dict[str, Callable[[], float]] = {
            "one rank": partial(_between_tokens, one),
            "two ranks": partial(_between_tokens, two),
            "sum": _plain_sum(weights_nbytes() // 4),
        }
        for measure in sides.values():
            measure()
        found = in_turns(sides, TURNS)
    said = ", ".join(f"{name} {spread([1e3 * v for v in s])} ms" for name, s in found.items())
    one_rank, two_ranks, sums = found.values()
    best = min(one_rank, two_ranks, key=median)
    what = "one stream, between tokens / a plain sum over the weights"
    yield at_most(1.5, what, ratios(best, sums), said)
    what = "the same, two tensor-parallel ranks / one rank with two threads"
    yield at_most(1.0, what, ratios(two_ranks, one_rank), said)


def _between_tokens(replica: Local) -> float:
    (answer,) = answered(replica, different(1, TOKENS), TOKENS)
    return median(answer.gaps())


def _plain_sum(numbers: int) -> Callable[[], float]:
    values = torch.ones(numbers)

    def measure() -> float:
        times = []
        for _ in range(SUMS):
            began = perf_counter()
            values.sum()
            times.append(perf_counter() - began)
        return median(times)

    return measure
