"""Closed-loop load over HTTP, in a process of its own: always so many requests in flight."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from itertools import cycle
from statistics import median

import aiohttp

from clients.closed_loop import LEAST, Load, LoadError


@dataclass(frozen=True)
class Order:
    """`bodies` are posted in turn, one a request; an answer but 200 ends it with an error."""

    url: str
    bodies: list[str]
    concurrency: int
    seconds: float

    def carried_out(self) -> Load:
        """By a child process, after a warm-up of a quarter of the time.

        Raises:
            LoadError: an answer was no 200, or none came.
        """
        child = [sys.executable, "-m", "benchmarks.peers.http_load"]
        text = json.dumps(asdict(self))
        done = subprocess.run(child, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LoadError(done.stderr.strip().splitlines()[-1])
        return Load(**json.loads(done.stdout))


async def _loop(order: Order) -> Load:
    bodies = cycle([body.encode() for body in order.bodies])
    latencies: list[float] = []
    begin = time.perf_counter() + order.seconds / 4
    end = begin + order.seconds

    async def one_client(session: aiohttp.ClientSession) -> None:
        while (start := time.perf_counter()) < end or len(latencies) < LEAST:
            async with session.post(order.url, data=next(bodies)) as answer:
                content = await answer.read()
                if answer.status != 200:
                    raise LoadError(f"{order.url}: {answer.status} {content[:200]!r}")
            if start >= begin:
                latencies.append(time.perf_counter() - start)

    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        await asyncio.gather(*(one_client(session) for _ in range(order.concurrency)))
    rate = len(latencies) / (time.perf_counter() - begin)
    return Load("aiohttp", rate, median(latencies) * 1e3)


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_loop(Order(**json.load(sys.stdin)))))))
