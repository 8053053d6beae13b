"""Closed-loop load on a Triton model over gRPC: always `concurrency` requests in flight.

NVIDIA's perf_analyzer where it is on the PATH (or named by PERF_ANALYZER), for it costs the
server's cores least; else a child process with asyncio, whose own work counts against the server.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc

from clients.proxy import direct
from server.token import METADATA


@dataclass(frozen=True)
class Load:
    """What a run of load showed; latency in milliseconds."""

    generator: str
    requests_per_second: float
    p50_ms: float


@dataclass(frozen=True)
class Target:
    """A model's one input; `rows` are sent in turn, one a request. A row is a text or numbers.

    `token` is the server's admin token: perf_analyzer asks for the model's config first.
    """

    url: str
    token: str
    model: str
    input: str
    rows: list[str] | list[list[float]]

    @property
    def is_text(self) -> bool:
        return isinstance(self.rows[0], str)


def closed_loop(target: Target, concurrency: int, seconds: float) -> Load:
    """Puts the load on for `seconds`, after a short warm-up."""
    analyzer = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
    if analyzer:
        return _perf_analyzer(analyzer, target, concurrency, seconds)
    order = json.dumps([asdict(target), concurrency, seconds])
    child = [sys.executable, "-m", "benchmarks.load"]
    done = subprocess.run(child, input=order, capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout))


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
            "--measurement-interval": int(seconds * 1000 / 3),  # it takes three windows
            "--stability-percentage": 999,
            "--max-trials": 3,
            "-f": report,
        }
        arguments = [str(part) for option in options.items() for part in option]
        subprocess.run([analyzer, *arguments], check=True, capture_output=True)
        with report.open() as lines:
            row = next(csv.DictReader(lines))
    throughput, p50 = float(row["Inferences/Second"]), float(row["p50 latency"]) / 1e3
    return Load("perf_analyzer", throughput, p50)


async def _asyncio_loop(target: Target, concurrency: int, seconds: float) -> Load:
    inputs = cycle([tensor(target, row) for row in target.rows])
    latencies: list[float] = []
    begin = time.perf_counter() + seconds / 4
    end = begin + seconds

    async def one_client(client: Any) -> None:
        while (start := time.perf_counter()) < end:
            await client.infer(target.model, [next(inputs)])
            if start >= begin:
                latencies.append(time.perf_counter() - start)

    async with grpc.InferenceServerClient(target.url, **direct(target.url)) as client:
        await asyncio.gather(*(one_client(client) for _ in range(concurrency)))
    p50 = float(np.median(latencies)) * 1e3
    return Load("asyncio", len(latencies) / (time.perf_counter() - begin), p50)


def tensor(target: Target, row: str | list[float]) -> Any:
    array = np.array([[row.encode()]], object) if isinstance(row, str) else np.array([row], "f4")
    made = grpc.InferInput(target.input, array.shape, "BYTES" if target.is_text else "FP32")
    made.set_data_from_numpy(array)
    return made


if __name__ == "__main__":
    order, *amounts = json.load(sys.stdin)
    print(json.dumps(asdict(asyncio.run(_asyncio_loop(Target(**order), *amounts)))))
