"""What tensor and pipeline parallelism are worth, ranks of one thread each, without Triton.

Both sides are up at once and measured in turns, so that the machine's moods hit both.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.texts import CHECKPOINT, longest_ids, short_texts, token_ids
from tests.support.configs import FP32, INT32, model_config, tensor
from tests.support.replicas import Served, served

ROUNDS = 5


def run() -> Iterator[dict[str, Any]]:
    """One record a comparison: what both sides took, and the ratio of medians."""
    for dtype in ("bfloat16", "float32"):
        for layers, what in ((1, "one block"), (6, "encoder")):
            label = f"tensor parallel 2, {what}, 256 tokens, {dtype}"
            sides = {"tensor_parallel_size": 1}, {"tensor_parallel_size": 2}
            yield _compare(label, "ms", latency_ms, dtype, layers, sides)
        sides = {"pipeline_parallel_size": 1}, {"pipeline_parallel_size": 2}
        label = f"pipeline parallel 2, full load, {dtype}"
        yield _compare(label, "texts/s", texts_per_second, dtype, 6, sides)


def _compare(
    label: str,
    unit: str,
    measure: Callable[[Served], float],
    dtype: str,
    layers: int,
    sides: tuple[dict[str, int], dict[str, int]],
) -> dict[str, Any]:
    with ExitStack() as stack:
        folder, *runtimes = (
            Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in ("model", *sides)
        )
        one, two = (
            stack.enter_context(served(encoder(folder, dtype, layers, side), runtime))
            for side, runtime in zip(sides, runtimes, strict=True)
        )
        measure(one), measure(two)
        pairs = [(measure(one), measure(two)) for _ in range(ROUNDS)]
    before, after = (median(side) for side in zip(*pairs, strict=True))
    ratio = before / after if unit == "ms" else after / before
    return {"comparison": label, "unit": unit, "1 rank": before, "2 ranks": after, "ratio": ratio}


def encoder(folder: Path, dtype: str, layers: int, side: dict[str, int]) -> Any:
    """The shipped encoder's config, or that of its first layers."""
    version = folder / f"{dtype}-{layers}" / "1"
    if not version.exists():
        version.mkdir(parents=True)
        config = json.loads(CHECKPOINT.file("config.json").read_text())
        (version / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        shutil.copy(CHECKPOINT.file("model.safetensors"), version)
    return model_config(
        version.parent,
        [tensor("INPUT_IDS", INT32, -1, allow_ragged_batch=True)],
        [tensor("HIDDEN_STATES", FP32, -1, 384)],
        engine="torch",
        dtype=dtype,
        max_batch_tokens=512,
        threads_per_rank=1,
        **side,
    )


def latency_ms(replica: Served, ids: npt.NDArray[np.int32] | None = None) -> float:
    """p50 of one request at a time; by default a text that fills the model's window."""
    ids, times = longest_ids() if ids is None else ids, []
    for _ in range(10):
        start = time.perf_counter()
        replica.ask(INPUT_IDS=ids).result()
        times.append(time.perf_counter() - start)
    return median(times) * 1e3


def texts_per_second(replica: Served, in_flight: int = 64) -> float:
    """256 texts, so many of them in flight."""
    ids = deque(token_ids(short_texts()[:256]))
    total, start = len(ids), time.perf_counter()
    flying = deque(replica.ask(INPUT_IDS=ids.popleft()) for _ in range(in_flight))
    while flying:
        flying.popleft().result()
        if ids:
            flying.append(replica.ask(INPUT_IDS=ids.popleft()))
    return total / (time.perf_counter() - start)
