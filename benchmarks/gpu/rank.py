"""What a rank on a GPU gives: requests of many texts, through the front, shared memory and back.

    python -m benchmarks.gpu.rank CHECKPOINT [DTYPE [cpu]]

A checkpoint of sentence-transformers with mean pooling. Every vector is compared with the one that
transformers' module makes in float32 on the processor.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.gpu.json_lines import report
from build_scripts.sentences import sentences
from python_mp.front.local import Local, served
from python_mp.model.config import ModelConfig
from python_mp.model.config_json import parse
from python_mp.model.request import Array
from python_mp.sharding.families.task import Layer, Task

SECONDS = 2.0
SIZES = {"cuda": (1, 32, 256, 1024), "cpu": (1, 4)}
TEXTS = {"cuda": 400, "cpu": 16}
DEPTH = 3
"""Requests in flight: one that is computed, one that the rank has already, one that waits."""


def main(checkpoint: Path, dtype: str = "bfloat16", device: str = "cuda") -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = _texts()[: TEXTS[device]]
    rows = [np.array(ids, np.int32) for ids in tokenizer(texts)["input_ids"]]
    lengths = [len(row) for row in rows]
    report(texts=len(rows), mean_tokens=sum(lengths) / len(rows), longest=max(lengths), dtype=dtype)
    right = _reference(checkpoint, rows)
    with TemporaryDirectory() as name:
        began = time.perf_counter()
        with served(_config(Path(name), checkpoint, dtype, device), Path(name)) as replica:
            report(serves_after_s=time.perf_counter() - began)
            for size in SIZES[device]:
                _measure(replica, rows, right, size)


def _measure(replica: Local, rows: list[Array], right: Array, size: int) -> None:
    picked = [[(first + n) % len(rows) for n in range(size)] for first in range(0, 8 * size, size)]
    asked = [_request([rows[n] for n in which]) for which in picked]
    replica.attend = 0.01  # As a request of Triton's does.
    worst = min(
        float((replica.ask(**each).result(60)["SENTENCE_EMBEDDING"] * right[which]).sum(1).min())
        for _ in range(2)
        for which, each in zip(picked, asked, strict=True)
    )
    time.sleep(1.0)  # For the graphs of these sizes.
    before = replica.metrics().copy()
    alone = list[float]()
    until = time.perf_counter() + SECONDS / 2
    while time.perf_counter() < until:
        began = time.perf_counter()
        replica.ask(**asked[len(alone) % len(asked)]).result(60)
        alone.append(time.perf_counter() - began)
    in_rank = _mean(before, replica.metrics())
    replica.attend = 0.0  # Or the asking thread would wait for each.
    flying: deque[Future[Any]] = deque()
    began, done = time.perf_counter(), 0
    while time.perf_counter() < began + SECONDS:
        flying.append(replica.ask(**asked[done % len(asked)]))
        if len(flying) == DEPTH:
            flying.popleft().result(60)
            done += 1
    rate = done * size / (time.perf_counter() - began)
    for each in flying:
        each.result(60)
    report(
        texts_a_request=size,
        alone_ms=median(alone) * 1e3,
        in_the_rank_ms=in_rank * 1e3,
        in_flight=DEPTH,
        texts_per_second=rate,
        one_minus_cosine=1 - worst,
    )


def _mean(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Seconds of the batches in between, from the rank's beginning to its outputs."""
    total, count = (
        after[name] - before.get(name, 0.0)
        for name in (
            "python_mp_forward_seconds_sum{rank=0}",
            "python_mp_forward_seconds_count{rank=0}",
        )
    )
    return total / count


def _request(rows: list[Array]) -> dict[str, Array]:
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for place, row in zip(ids, rows, strict=True):
        place[: len(row)] = row
    return {"INPUT_IDS": ids, "LENGTHS": np.array([[len(row)] for row in rows], np.int32)}


def _config(folder: Path, checkpoint: Path, dtype: str, device: str) -> ModelConfig:
    """Of one rank, on the first GPU where the device is one."""
    (folder / "1").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy2(checkpoint / name, folder / "1" / name)
    Task("embed", ("mean",), (Layer("Normalize"),)).write(folder / "1")
    width = json.loads((checkpoint / "config.json").read_text())["hidden_size"]
    ids = {"name": "INPUT_IDS", "data_type": "TYPE_INT32", "dims": ["-1"]}
    parameters = {
        "engine": "torch",
        "dtype": dtype,
        "lengths": "LENGTHS",
        "max_batch_tokens": "65536",
        "max_batch_bytes": str(64 << 20),
    }
    raw = {
        "name": "encoder",
        "max_batch_size": 1024,
        "input": [
            {**ids, "allow_ragged_batch": True},
            {"name": "LENGTHS", "data_type": "TYPE_INT32", "dims": ["1"]},
        ],
        "output": [{"name": "SENTENCE_EMBEDDING", "data_type": "TYPE_FP32", "dims": [str(width)]}],
        "instance_group": [{"name": "lead", "count": 1, "passive": False} | PLACES[device]],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }
    return parse(json.dumps(raw), str(folder), "1")


PLACES: dict[str, dict[str, Any]] = {
    "cuda": {"kind": "KIND_GPU", "gpus": [0]},
    "cpu": {"kind": "KIND_CPU"},
}


def _reference(checkpoint: Path, rows: list[Array]) -> Array:
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        means = [
            model(input_ids=torch.from_numpy(row)[None].long()).last_hidden_state[0].mean(0)
            for row in rows
        ]
    return torch.nn.functional.normalize(torch.stack(means)).numpy()


def _texts() -> list[str]:
    return [text for text in sentences(400) if len(text) < 400]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
