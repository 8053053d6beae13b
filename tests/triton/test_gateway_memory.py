"""What gateway, Triton, stubs and ranks hold does not grow with what was asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from benchmarks.idle import processes
from tests.support.calls import settled
from tests.support.command import Command, command
from tests.support.processes import until
from tests.triton.test_chat import checkpoint, models
from tests.triton.test_gateway_served import running

__all__ = ["checkpoint", "models"]
FIRST, MANY, AT_ONCE = 3_000, 10_000, 16
LEAK = 8 << 20  # bytes: 0.8 KB a request
Ask = Callable[[openai.AsyncOpenAI, str], Awaitable[Any]]


async def whole(client: openai.AsyncOpenAI, text: str) -> None:
    answer = await client.completions.create(model="chat", prompt=text, max_tokens=4)
    assert answer.usage.completion_tokens <= 4


async def events(client: openai.AsyncOpenAI, text: str) -> None:
    talk: list[Any] = [{"role": "user", "content": text}]
    chunks = await client.chat.completions.create(
        model="chat", messages=talk, max_completion_tokens=4, stream=True
    )
    assert [chunk async for chunk in chunks][-1].choices[0].finish_reason


async def leaves(client: openai.AsyncOpenAI, text: str) -> None:
    chunks = await client.completions.create(
        model="chat", prompt=text, max_tokens=300, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(chunks))
    await chunks.close()


async def refused(client: openai.AsyncOpenAI, text: str) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model="chat", prompt=text * 600)


KINDS: list[Ask] = [*[whole, events] * 4, leaves, refused]


async def ask(served: Command, count: int) -> None:
    http = openai.DefaultAsyncHttpxClient(trust_env=False, timeout=60)
    url, numbers = served.endpoints.openai_url, iter(range(count))
    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, http_client=http
    ) as client:

        async def work() -> None:
            for number in numbers:
                await KINDS[number % len(KINDS)](client, f"Text {number} ")

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def held(served: Command) -> Counter[str]:
    """Bytes by kind, once all that ran is over. Pages that forked processes share count for each:
    they come to be their own without being more."""
    free = settled(served.endpoints, lambda page: not page.total("kv_blocks_used"))
    assert free.total("running_sequences") == 0
    found: Counter[str] = Counter()
    for pid, kind in processes(served.process.pid).items():
        found[kind] += psutil.Process(pid).memory_info().rss
    return found


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_memory_is_flat(models: Path) -> None:
    """A tenth of the clients go away in the middle, a tenth are refused. The cache is full soon."""
    with (models / "chat_decoder" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "kv_cache_blocks" value { string_value: "256" } }')
    with command(models, "--openai") as served:
        served.wait_ready()
        until(lambda: running(served) is not None)
        asyncio.run(ask(served, FIRST))
        before = held(served)
        for _ in range(4):
            asyncio.run(ask(served, MANY // 4))
            grown = {kind: size - before[kind] for kind, size in held(served).items()}
            print(grown)
    print(
        {
            kind: f"{before[kind] >> 20} MiB {more / MANY:+.0f} B a request"
            for kind, more in grown.items()
        }
    )
    assert {"gateway", "ranks", "stubs", "tritonserver", "watcher"} <= grown.keys()
    assert max(grown.values()) < LEAK, grown
