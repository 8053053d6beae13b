"""Closed-loop load on a Triton model over gRPC: always `concurrency` requests in flight.

NVIDIA's perf_analyzer where it is on the PATH (or named by PERF_ANALYZER), for it costs the
server's cores least; else a child process with asyncio, whose own work counts against the server.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc
from numpy.typing import NDArray

from clients.closed_loop import ClosedLoop, Load
from server.token import METADATA


@dataclass(frozen=True)
class Target:
    """A model's one input; `rows` are sent in turn, `batch` a request. A row is a text or numbers.

    `token` is the server's admin token: perf_analyzer asks for the model's config first.
    """

    url: str
    token: str
    model: str
    input: str
    rows: list[str] | list[list[float]]
    batch: int = 1

    @property
    def is_text(self) -> bool:
        return isinstance(self.rows[0], str)


def closed_loop(target: Target, concurrency: int, seconds: float) -> Load:
    """Puts the load on for `seconds`, after a short warm-up."""
    analyzer = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
    if analyzer:
        return _perf_analyzer(analyzer, target, concurrency, seconds)
    rows = cycle(array(row) for row in target.rows)
    batches = (np.concatenate([*islice(rows, target.batch)]) for _ in target.rows)
    requests = [{target.input: batch} for batch in batches]
    with ClosedLoop(target.url, requests) as loop:
        return loop.load(target.model, concurrency, seconds)


def _perf_analyzer(analyzer: str, target: Target, concurrency: int, seconds: float) -> Load:
    with tempfile.TemporaryDirectory() as name:
        data, report = Path(name, "data.json"), Path(name, "report.csv")
        rows = [{target.input: [row] if target.is_text else row} for row in target.rows]
        data.write_text(json.dumps({"data": rows}))
        options = {
            "-m": target.model,
            "-u": target.url,
            "-i": "grpc",
            "-H": f"{METADATA}:{target.token}",
            "--input-data": data,
            "--concurrency-range": concurrency,
            "-b": target.batch,
            "--measurement-interval": int(seconds * 1000 / 3),  # it takes three windows
            "--stability-percentage": 999,
            "--max-trials": 3,
            "-f": report,
        }
        arguments = [str(part) for option in options.items() for part in option]
        subprocess.run([analyzer, *arguments], check=True, capture_output=True)
        with report.open() as lines:
            row = next(csv.DictReader(lines))
    p50, p99 = (float(row[f"p{share} latency"]) / 1e3 for share in (50, 99))
    rate = float(row["Inferences/Second"]) / target.batch  # it counts the rows of a batch
    return Load("perf_analyzer", rate, p50, p99)


def tensor(target: Target, row: str | list[float]) -> Any:
    values = array(row)
    made = grpc.InferInput(target.input, values.shape, "BYTES" if target.is_text else "FP32")
    made.set_data_from_numpy(values)
    return made


def array(row: str | list[float]) -> NDArray[Any]:
    return np.array([[row.encode()]], object) if isinstance(row, str) else np.array([row], "f4")
