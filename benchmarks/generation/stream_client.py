"""A client of streams in a process of its own: asyncio, one gRPC stream a request.

Each line that it is given is an order, see `Order`; it answers with a line, see `Seen`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from clients.proxy import direct


@dataclass(frozen=True)
class Order:
    """`prompts` are ids, or texts for a model that has the input TEXT; all are sent at once."""

    url: str
    model: str
    prompts: list[list[int]] | list[str]
    max_tokens: int


@dataclass(frozen=True)
class Seen:
    """
    Attributes:
        seconds: from the first submission to the last part.
        first: seconds to the first part of each stream.
        gaps: seconds between parts, of all streams.
        cpu: processor seconds of the client.
    """

    tokens: int
    parts: int
    seconds: float
    first: list[float]
    gaps: list[float]
    cpu: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


async def _all(order: Order) -> Seen:
    began, cpu = time.perf_counter(), time.process_time()
    async with InferenceServerClient(order.url, **direct(order.url)) as client:
        streams = await asyncio.gather(*(_stream(client, order, each) for each in order.prompts))
    ends = [moment for parts in streams for moment, _ in parts]
    times = [[moment for moment, _ in parts] for parts in streams]
    return Seen(
        sum(tokens for parts in streams for _, tokens in parts),
        len(ends),
        max(ends) - began,
        [each[0] - began for each in times],
        [b - a for each in times for a, b in pairwise(each)],
        time.process_time() - cpu,
    )


async def _stream(
    client: InferenceServerClient, order: Order, prompt: list[int] | str
) -> list[tuple[float, int]]:
    """When each part came, and its tokens."""
    parameters = {"max_tokens": order.max_tokens, "ignore_eos": True}
    names = ["ANSWER", "OUTPUT_IDS"] if isinstance(prompt, str) else ["OUTPUT_IDS"]
    request = {
        "model_name": order.model,
        "inputs": [_tensor(prompt)],
        "outputs": [InferRequestedOutput(name) for name in names],
        "parameters": parameters,
    }

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield request

    parts = []
    async for result, error in client.stream_infer(requests()):
        if error:
            raise error
        ids = next(each for each in result.get_response().outputs if each.name == "OUTPUT_IDS")
        parts.append((time.perf_counter(), int(ids.shape[-1])))
    return parts


def _tensor(prompt: list[int] | str) -> InferInput:
    if isinstance(prompt, str):
        made = InferInput("TEXT", [1, 1], "BYTES")
        made.set_data_from_numpy(np.array([[prompt.encode()]], np.object_))
    else:
        made = InferInput("INPUT_IDS", [1, len(prompt)], "INT32")
        made.set_data_from_numpy(np.array([prompt], np.int32))
    return made


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is no answer.
    for line in sys.stdin:
        seen = asyncio.run(_all(Order(**json.loads(line))))
        print(json.dumps(asdict(seen)), file=answers, flush=True)
