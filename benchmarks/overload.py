"""Four times what the server can do, for a minute: what still gets through, and how late.

The ranks have a core of their own, as they would have a device; all else, the load's generator too,
shares the other cores. Otherwise the work of sending and refusing would be taken from the ranks,
and the figures would say how few cores there are.

python -m benchmarks overload
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc
from tritonclient.utils import InferenceServerException

from benchmarks.load import Target, closed_loop, tensor
from benchmarks.texts import short_texts
from build_scripts.job import REPOSITORY
from clients.chaos.leaks import megabytes
from clients.chaos.processes import descendants
from clients.proxy import direct
from server.endpoints import Endpoints
from server.process.launch import TritonServer

PEAK_CONCURRENCY, PEAK_SECONDS = 32, 12.0
TIMES, SECONDS = 4, 60.0
POLICY = "ranks"


def run() -> Iterator[dict[str, Any]]:
    """One record: `embed` at its peak in closed loop, then four times that in an open loop."""
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        return
    os.sched_setaffinity(0, others)
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, [first, *others])
        repository = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _fill(repository)
        policy = f"--host-policy={POLICY},cpu-cores={first}-{first}"
        server = TritonServer(
            repository, endpoints=Endpoints.free(), show=lambda _: None, options=[policy]
        )
        stack.enter_context(server)
        target = Target(
            server.endpoints.grpc_url, server.settings.token, "embed", "TEXT", short_texts()
        )
        peak = closed_loop(target, PEAK_CONCURRENCY, PEAK_SECONDS).requests_per_second
        order = json.dumps([asdict(target), TIMES * peak, SECONDS])
        command = [sys.executable, "-m", "benchmarks.overload"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as generator:
            assert generator.stdin is not None
            generator.stdin.write(order)
            generator.stdin.close()
            time.sleep(SECONDS / 6)
            early = _megabytes(server.pid)
            time.sleep(SECONDS * 2 / 3)
            late = _megabytes(server.pid)
            assert generator.stdout is not None
            seen = json.loads(generator.stdout.read())
        yield {
            "peak requests/s": peak,
            "offered/s": seen["offered"],
            "goodput/s": seen["goodput"],
            "of peak": seen["goodput"] / peak,
            "p50 s of accepted": seen["p50"],
            "p99 s of accepted": seen["p99"],
            "refused": seen["refused"],
            "other errors": seen["errors"],
            "MB at 10 s": early,
            "MB at 50 s": late,
        }


def _fill(repository: Path) -> None:
    """`embed` and its steps, the encoder's instances under the host policy."""
    for model in ("embed", "embed_tokenizer", "embed_encoder", "embed_vectors"):
        shutil.copytree(REPOSITORY / model, repository / model)
    config = repository / "embed_encoder" / "config.pbtxt"
    placed = f'kind: KIND_CPU host_policy: "{POLICY}"'
    config.write_text(config.read_text().replace("kind: KIND_CPU", placed))


async def _open_loop(target: Target, rate: float, seconds: float) -> dict[str, Any]:
    """Sends at this rate whatever comes back; the first sixth is left out of the figures."""
    inputs = [tensor(target, row) for row in target.rows]
    latencies: list[float] = []
    refused = errors = 0
    begin = time.perf_counter()
    warm, end = begin + seconds / 6, begin + seconds

    async def one(client: Any, number: int) -> None:
        nonlocal refused, errors
        sent = time.perf_counter()
        try:
            await client.infer(target.model, [inputs[number % len(inputs)]])
        except InferenceServerException as error:
            if error.status() == "StatusCode.UNAVAILABLE":
                refused += 1
            else:
                errors += 1
            return
        if warm <= time.perf_counter() <= end:
            latencies.append(time.perf_counter() - sent)

    async with (
        grpc.InferenceServerClient(target.url, **direct(target.url)) as client,
        asyncio.TaskGroup() as group,
    ):
        number = 0
        while (now := time.perf_counter()) < end:
            while number < (now - begin) * rate:
                group.create_task(one(client, number))
                number += 1
            await asyncio.sleep(0.005)
    p50, p99 = np.percentile(latencies, [50, 99])
    return {
        "offered": number / seconds,
        "goodput": len(latencies) / (end - warm),
        "p50": float(p50),
        "p99": float(p99),
        "refused": refused,
        "errors": errors,
    }


def _megabytes(server: int) -> float:
    """Proportional memory of tritonserver and all below it."""
    return megabytes([server, *descendants(server)])


if __name__ == "__main__":
    order, *amounts = json.load(sys.stdin)
    print(json.dumps(asyncio.run(_open_loop(Target(**order), *amounts))))
