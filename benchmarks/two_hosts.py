"""What it costs that stages stand on two hosts: network namespaces of this machine, so the cost of
sockets and agents alone, and of no real network.

Both sides are up at once and measured in turns, ranks of one thread each, without Triton. Then what
it costs that ranks of a stage meet across them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console

from benchmarks.collectives import over_two_hosts
from benchmarks.parallel import encoder, texts_per_second
from tests.support.agents_on_hosts import connected
from tests.support.network import network, why_not
from tests.support.replicas import served

ROUNDS, IN_FLIGHT = 5, 32
MEETING = 48 << 10


def run() -> Iterator[dict[str, Any]]:
    """Two records of medians and their ratio: texts a second of two stages on two hosts and on one;
    microseconds of an all-reduce of 2 x 2 ranks, ours and flat gloo's.

    It yields nothing, and says why, where no hosts can be made.
    """
    if reason := why_not():
        Console().print(f"no hosts: {reason}")
        return
    yield _stages_apart()
    (record,) = over_two_hosts(((torch.float32, MEETING),))
    what = f"all-reduce of {MEETING >> 10} KiB, 2 x 2 ranks: in two steps / flat gloo"
    times = {"this": record["ours_us"], "that": record["gloo_us"], "ratio": record["share"]}
    yield {"comparison": what, "unit": "us"} | times | {"quartiles": "", "goal": "<= 0.6"}


def _stages_apart() -> dict[str, Any]:
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
    return {
        "comparison": f"embed, 2 stages, {IN_FLIGHT} in flight, float32: two hosts / one",
        "unit": "texts/s",
        "this": far,
        "that": near,
        "ratio": far / near,
        "quartiles": f"{low:.2f}, {high:.2f}",
        "goal": ">= 0.9",
    }


def _stages(hosts: int) -> dict[str, int]:
    return {"pipeline_parallel_size": 2, "hosts": hosts}
