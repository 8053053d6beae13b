"""Clients of OpenAI's interface that go away at every point of an answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import openai

AT_ONCE = 32
SECONDS = 0.3
"""The longest that one stays."""


async def crowd(url: str, count: int, asked: Mapping[str, Any]) -> None:
    """So many streams, each dropped in the middle of whatever its client waits for; one in three
    is asked for by steps."""
    numbers, order = iter(range(count)), random.Random(1)
    http = openai.DefaultAsyncHttpxClient(trust_env=False, timeout=60)
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http
    ) as client:

        async def work() -> None:
            for number in numbers:
                more = {"logprobs": 1} if number % 3 == 0 else {}
                reading = _read(client, {**asked, "prompt": f"Text {number} ", **more})
                try:
                    await asyncio.wait_for(reading, SECONDS * order.random())
                except TimeoutError:
                    continue

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def _read(client: openai.AsyncOpenAI, asked: Mapping[str, Any]) -> None:
    async with await client.completions.create(**asked, stream=True) as chunks:
        async for _ in chunks:
            pass
