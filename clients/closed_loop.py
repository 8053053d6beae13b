"""Closed-loop load on a model over gRPC: always so many requests in flight, from another process.

    with ClosedLoop(url, requests) as loop:
        print(loop.load("embed", concurrency=32, seconds=4))

The process reads one JSON line for each run from its stdin, and writes one to its stdout.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any, Self

import numpy as np
import tritonclient.grpc.aio as grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from clients.proxy import direct

Request = Mapping[str, NDArray[Any]]
Tensors = Iterator[list[Any]]
LEAST = 10
"""Requests that are measured, however slow."""


class LoadError(Exception):
    """A request was not answered; the text is the server's."""


@dataclass(frozen=True)
class Load:
    """What a run of load showed; latency in milliseconds."""

    generator: str
    requests_per_second: float
    p50_ms: float
    p99_ms: float = 0.0


class ClosedLoop:
    """A process that sends these requests in turn.

    Args:
        url: host:port of the server's gRPC.
        requests: an array for each input, with its batch dimension; BYTES as numpy objects.
    """

    def __init__(self, url: str, requests: Sequence[Request]) -> None:
        self._first = {"url": url, "requests": [_packed(each) for each in requests]}

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "clients.closed_loop"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._child = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
        self._tell(self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()

    def load(self, model: str, concurrency: int, seconds: float) -> Load:
        """Puts the load on for `seconds`, and at least for `LEAST` requests, after a short warm-up.

        Raises:
            LoadError: a request failed.
        """
        self._tell([model, concurrency, seconds])
        said = json.loads(self._child.stdout.readline() or '{"error": "the load has ended"}')
        if error := said.pop("error", ""):
            raise LoadError(error)
        return Load(**said)

    def _tell(self, order: object) -> None:
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()


def _packed(request: Request) -> dict[str, Any]:
    def plain(array: NDArray[Any]) -> list[Any]:
        is_text = array.dtype == np.object_
        return [each.decode() for each in array.ravel()] if is_text else array.ravel().tolist()

    return {name: [str(a.dtype), a.shape, plain(a)] for name, a in request.items()}


def _tensors(request: Mapping[str, Any]) -> list[Any]:
    made = []
    for name, (dtype, shape, values) in request.items():
        array = np.array([v.encode() for v in values] if dtype == "object" else values, dtype)
        made.append(grpc.InferInput(name, shape, np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array.reshape(shape))
    return made


async def _run(
    client: Any, requests: Tensors, model: str, concurrency: int, seconds: float
) -> Load:
    latencies: list[float] = []
    begin, least = time.perf_counter() + seconds / 4, max(LEAST, concurrency)

    async def one_client() -> None:
        while (start := time.perf_counter()) < begin + seconds or len(latencies) < least:
            await client.infer(model, next(requests))
            if start >= begin:
                latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    rate = len(latencies) / (time.perf_counter() - begin)
    p50, p99 = (float(np.quantile(latencies, share)) * 1e3 for share in (0.5, 0.99))
    return Load("asyncio", rate, p50, p99)


async def _serve(url: str, given: Sequence[Mapping[str, Any]]) -> None:
    requests = cycle([_tensors(each) for each in given])
    async with grpc.InferenceServerClient(url, **direct(url)) as client:
        for line in sys.stdin:
            try:
                said = asdict(await _run(client, requests, *json.loads(line)))
            except InferenceServerException as error:
                said = {"error": str(error.message())}
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(*json.loads(sys.stdin.readline()).values()))
