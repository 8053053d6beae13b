"""The packed encoder called in a loop, in one process on all cores: what serving may at most reach.

Beside it what is to be had at most: a full batch beside its products alone, one text beside the
graph that ONNX Runtime's own optimizer makes of the checkpoint.

python -m benchmarks.in_process DTYPE SECONDS      prints texts a second
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from statistics import median, quantiles
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from benchmarks.fused_graph import fused_graph
from benchmarks.texts import CHECKPOINT, short_texts, token_ids
from python_mp.model.batch import CU_SEQLENS
from python_mp.rank.collectives import connect
from python_mp.sharding import panels, products, source
from python_mp.sharding.direct import call_directly
from python_mp.sharding.packed import Packed
from python_mp.sharding.shard import Shard

BATCH, SHORT, MOST = 32, 31, 4096
CPU = torch.device("cpu")
LAYERS, SHAPES = 6, ((1152, 384), (384, 384), (1536, 384), (384, 1536))
"""MiniLM's products, [outputs, inputs]."""
ROUNDS = 5
Ids = npt.NDArray[np.int32]


def run() -> Iterator[dict[str, Any]]:
    """One record a comparison, float32: medians of rounds in turns, and quartiles of the ratio."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    encoder, texts = _encoder("float32"), [row[0] for row in token_ids(short_texts())]
    with torch.inference_mode():
        batch = _pack(texts[:BATCH])
        most = [_products(int(batch.cu_seqlens[-1]), multiply) for multiply in _MULTIPLY]
        yield _compare("a batch of 32 texts / its products alone", [lambda: encoder(batch)], most)
        short = min(texts, key=lambda ids: abs(len(ids) - SHORT))
        one, rival = _pack([short]), fused_graph(short)
        yield _compare(
            f"one text of {len(short)} tokens / ONNX Runtime's fused graph",
            [lambda: encoder(one)],
            [rival],
        )


def _compare(
    what: str, ours: list[Callable[[], object]], theirs: list[Callable[[], object]]
) -> dict[str, Any]:
    """Each side is the fastest of its ways."""
    rounds = [(min(map(_ms, ours)), min(map(_ms, theirs))) for _ in range(ROUNDS)]
    first, second = (median(side) for side in zip(*rounds, strict=True))
    low, _, high = quantiles([a / b for a, b in rounds], n=4)
    quartiles = f"{low:.2f}, {high:.2f}"
    return {
        "comparison": what,
        "ms": first,
        "the other": second,
        "ratio": first / second,
        "quartiles": quartiles,
    }


def _ms(call: Callable[[], object], seconds: float = 0.5) -> float:
    """Median over calls."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not times:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times) * 1e3


def _products(rows: int, make: Callable[..., Callable[[torch.Tensor], object]]) -> Any:
    weights = [
        (torch.randn(rows, inputs), make(torch.randn(outputs, inputs), torch.randn(outputs)))
        for _ in range(LAYERS)
        for outputs, inputs in SHAPES
    ]

    def all_of_them() -> None:
        for x, multiply in weights:  # Each result is freed, so that memory is not fetched anew.
            multiply(x)

    return all_of_them


def _by_onednn(weight: torch.Tensor, bias: torch.Tensor) -> Callable[[torch.Tensor], object]:
    """With a weight that is packed once."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _by_panels(weight: torch.Tensor, bias: torch.Tensor) -> Callable[[torch.Tensor], object]:
    held = panels.taken(panels.in_panels(weight), wanted=True)
    return lambda x: products.linear(x, held, bias)


_MULTIPLY = (
    lambda weight, bias: lambda x: F.linear(x, weight, bias),
    _by_panels,
    _by_onednn,
)


def main(dtype: str, seconds: float) -> float:
    """Texts a second, in batches of 32 texts as they come."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    encoder, ids = _encoder(dtype), [row[0] for row in token_ids(short_texts())]
    whole = len(ids) // BATCH * BATCH
    batches = cycle([_pack(ids[start : start + BATCH]) for start in range(0, whole, BATCH)])
    with torch.inference_mode():
        encoder(next(batches))
        done, start = 0, time.perf_counter()
        while time.perf_counter() < start + seconds:
            encoder(next(batches))
            done += BATCH
    return done / (time.perf_counter() - start)


def _encoder(dtype: str) -> Callable[[Packed], object]:
    """As a rank computes it, alone."""
    shard = Shard(
        rank=0,
        size=1,
        stage=0,
        stages=1,
        dtype=getattr(torch, dtype),
        device=CPU,
        folder=CHECKPOINT.path,
        parameters={},
        communicator=connect("auto", tensor_rank=0, tensor_size=1),
    )
    module: Any = source.read(shard.folder).build(shard).eval()
    call_directly(module)
    with torch.inference_mode():
        for lengths in module.capture(MOST):
            module(_pack([np.arange(n, dtype=np.int32) % 2 for n in lengths]), None)
    return lambda batch: module(batch, None)


def _pack(rows: list[Ids]) -> Packed:
    cu_seqlens = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    return Packed({"INPUT_IDS": np.concatenate(rows), CU_SEQLENS: cu_seqlens}, CPU)


if __name__ == "__main__":
    print(main(sys.argv[1], float(sys.argv[2])))
