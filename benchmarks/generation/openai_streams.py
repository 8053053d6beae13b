"""A client of OpenAI's `/v1/completions` in a process of its own: asyncio, one stream a prompt.

Each line that it is given is an order, see `Order`; it answers with a line, see `Seen`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass

import aiohttp

LIMIT = 600.0


@dataclass(frozen=True)
class Order:
    """All prompts are sent at once."""

    url: str
    model: str
    prompts: list[str]
    max_tokens: int


@dataclass(frozen=True)
class Seen:
    """
    Attributes:
        tokens: of prompts, and of answers, as the server counts them.
        seconds: from the first submission to the last event.
        first: seconds to the first event with a choice of each stream.
    """

    prompt_tokens: int
    tokens: int
    seconds: float
    first: list[float]

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


async def _all(order: Order) -> Seen:
    began = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=LIMIT)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        found = await asyncio.gather(*(_stream(session, order, each) for each in order.prompts))
    seconds = time.perf_counter() - began
    firsts, asked, answered = zip(*found, strict=True)
    return Seen(sum(asked), sum(answered), seconds, [each - began for each in firsts])


async def _stream(
    session: aiohttp.ClientSession, order: Order, prompt: str
) -> tuple[float, int, int]:
    """When its first event came, and the tokens of prompt and answer."""
    body = {"model": order.model, "prompt": prompt, "max_tokens": order.max_tokens}
    body |= {"temperature": 0, "ignore_eos": True, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    first, usage = 0.0, {}
    async with session.post(order.url, json=body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {(await answer.text())[:300]}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            first = first or time.perf_counter()
            if found := json.loads(line[6:]).get("usage"):
                usage = found
    return first, usage["prompt_tokens"], usage["completion_tokens"]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(asdict(asyncio.run(_all(Order(**json.loads(line)))))), flush=True)
