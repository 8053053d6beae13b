"""What it costs that stages stand on two hosts: network namespaces of this machine, so the cost of
sockets and agents alone, and of no real network.

Both sides are up at once and measured in turns, ranks of one thread each, without Triton.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console

from benchmarks.parallel import encoder, texts_per_second
from tests.support.agents_on_hosts import connected
from tests.support.network import network, why_not
from tests.support.replicas import served

ROUNDS, IN_FLIGHT = 7, 32


def run() -> Iterator[dict[str, Any]]:
    """One record: texts a second of two stages on one host, and on two; medians, and their ratio.

    It yields nothing, and says why, where no hosts can be made.
    """
    if reason := why_not():
        Console().print(f"no hosts: {reason}")
        return
    with ExitStack() as held:
        a, b = held.enter_context(network(2))
        folder, *runtimes = (
            Path(held.enter_context(tempfile.TemporaryDirectory())) for _ in range(3)
        )
        held.enter_context(connected(a, [b], folder))
        configs = [encoder(folder, "float32", 6, _stages(hosts)) for hosts in (1, 2)]
        one, two = (
            held.enter_context(served(config, runtime))
            for config, runtime in zip(configs, runtimes, strict=True)
        )
        sides = [
            (texts_per_second(one, IN_FLIGHT), texts_per_second(two, IN_FLIGHT))
            for _ in range(ROUNDS + 1)
        ][1:]
    low, _, high = quantiles([far / near for near, far in sides], n=4)
    near, far = (median(side) for side in zip(*sides, strict=True))
    yield {
        "comparison": f"pipeline parallel 2, {IN_FLIGHT} in flight, float32",
        "one host, texts/s": near,
        "two hosts, texts/s": far,
        "ratio": far / near,
        "quartiles": f"{low:.2f}, {high:.2f}",
    }


def _stages(hosts: int) -> dict[str, int]:
    return {"pipeline_parallel_size": 2, "hosts": hosts}
