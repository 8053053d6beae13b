"""What invalid requests cost their company: one in a hundred asks `embed_encoder` for a token that
there is not, and each batch that it is in has to be taken apart.

Runs with and without such requests take turns, so that a machine that slows down slows both.

python -m benchmarks refusals
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc
from tritonclient.utils import InferenceServerException

from build_scripts.job import REPOSITORY
from clients.proxy import direct
from server.endpoints import Endpoints
from server.process.launch import TritonServer

MODEL = "embed_encoder"
IN_FLIGHT, ONE_IN = 32, 100
PAIRS, SECONDS, WARM_SECONDS = 5, 10.0, 2.0


@dataclass
class Seen:
    """Of one run."""

    texts: int = 0
    refused: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.texts / self.seconds


def run() -> Iterator[dict[str, Any]]:
    """A record for each pair, and one with the medians."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(REPOSITORY / MODEL, Path(folder, MODEL))
        with TritonServer(Path(folder), endpoints=Endpoints.free(), show=lambda _: None) as server:
            url = server.endpoints.grpc_url
            asyncio.run(_ask(url, WARM_SECONDS, one_in=0))
            pairs = []
            for number in range(PAIRS):
                order = (0, ONE_IN) if number % 2 else (ONE_IN, 0)
                seen = {one_in: asyncio.run(_ask(url, SECONDS, one_in)) for one_in in order}
                pairs.append((seen[0], seen[ONE_IN]))
                yield _record(str(number + 1), *pairs[-1])
    rates = [(without.rate, beside.rate) for without, beside in pairs]
    without, beside = (median(column) for column in zip(*rates, strict=True))
    yield {
        "pair": "median",
        "texts/s without": without,
        "with": beside,
        "ratio": median(b / a for a, b in rates),
        "refused": sum(beside.refused for _, beside in pairs),
    }


def _record(pair: str, without: Seen, beside: Seen) -> dict[str, Any]:
    return {
        "pair": pair,
        "texts/s without": without.rate,
        "with": beside.rate,
        "ratio": beside.rate / without.rate,
        "refused": beside.refused,
    }


async def _ask(url: str, seconds: float, one_in: int) -> Seen:
    """So many in flight for so long; every `one_in`th is invalid, and must be the one refused."""
    seen, numbers, begin = Seen(), count(1), time.perf_counter()
    texts = [_inputs(np.random.default_rng(n)) for n in range(512)]

    async def ask(client: Any) -> None:
        while time.perf_counter() - begin < seconds:
            number = next(numbers)
            is_bad = one_in > 0 and number % one_in == 0
            inputs = _inputs(np.random.default_rng(number), -1) if is_bad else texts[number % 512]
            try:
                await client.infer(MODEL, inputs)
                seen.texts += 1
            except InferenceServerException as error:
                if not is_bad or error.status() != "StatusCode.INVALID_ARGUMENT":
                    raise
                seen.refused += 1
                continue
            assert not is_bad, "an invalid request was answered"

    async with (
        grpc.InferenceServerClient(url, **direct(url)) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(IN_FLIGHT):
            group.create_task(ask(client))
    seen.seconds = time.perf_counter() - begin
    return seen


def _inputs(random: np.random.Generator, first: int = 101) -> list[grpc.InferInput]:
    """A text of 8 to 40 tokens."""
    ids = random.integers(1000, 30_000, [1, int(random.integers(8, 41))], np.int32)
    ids[0, 0] = first
    given = {"INPUT_IDS": ids, "LENGTHS": np.array([[ids.size]], np.int32)}
    inputs = []
    for name, array in given.items():
        each = grpc.InferInput(name, list(array.shape), "INT32")
        each.set_data_from_numpy(array)
        inputs.append(each)
    return inputs
