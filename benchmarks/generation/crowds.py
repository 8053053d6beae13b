"""Many streams in process: beside a long prompt, in too small a cache, behind one beginning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import perf_counter

import numpy as np

from python_mp.front.local import Local

from .decoder_replicas import LIMIT, Timed, answered, ask, decoder, rate
from .goals import ROUNDS, Record, at_least, at_most, in_turns, ratios, spread
from .random_prompts import different

LONG = 4000
COMPANY = 16
CALM_TOKENS = 40
SHARED, OWN, SHARERS = 400, 40, 32


def long_prompt() -> Iterator[Record]:
    with decoder(kv_cache_blocks=1100) as replica:
        answered(replica, different(COMPANY, 64), 8)
        rounds = [_beside_a_long_prompt(replica) for _ in range(ROUNDS)]
    calm, busy, alone, among = (list(values) for values in zip(*rounds, strict=True))
    what = f"between-token p99 of {COMPANY} streams beside a prompt of {LONG} tokens / calm"
    said = f"{spread([1e3 * v for v in busy])} ms, calm {spread([1e3 * v for v in calm])} ms"
    yield at_most(3, what, ratios(busy, calm), said)
    said = f"{spread(among)} s, alone {spread(alone)} s"
    yield at_most(1.7, "its first token / alone", ratios(among, alone), said)


def _beside_a_long_prompt(replica: Local) -> tuple[float, float, float, float]:
    """p99 between tokens in calm and beside it, its first token alone and among them; seconds."""
    (alone,) = answered(replica, different(1, LONG), 1)
    streams = ask(replica, different(COMPANY, 64), LONG)
    _until(lambda: all(len(each.moments) > 2 for each in streams))
    began = perf_counter()
    _until(lambda: all(len(each.gaps(began)) >= CALM_TOKENS for each in streams))
    asked = perf_counter()
    (among,) = answered(replica, different(1, LONG), 1)
    answered_at = perf_counter()
    for each in streams:
        each.cancelled = True
    _until(lambda: all(each.done.done() for each in streams))
    calm, busy = _p99(streams, began, asked), _p99(streams, asked, answered_at)
    return calm, busy, alone.first, among.first


def _p99(streams: Sequence[Timed], begin: float, end: float) -> float:
    return float(np.percentile([gap for each in streams for gap in each.gaps(begin, end)], 99))


def preemption() -> Iterator[Record]:
    """20 requests of 8 blocks each, a cache of 32 blocks, beside four at a time in the same."""
    count, prompt, most, blocks = 20, 48, 80, 32
    with (
        decoder(kv_cache_blocks=blocks) as small,
        decoder(kv_cache_blocks=blocks, max_running_sequences=4) as calm,
    ):
        answered(small, different(2, prompt), 4), answered(calm, different(2, prompt), 4)
        prompts = [different(count, prompt) for _ in range(ROUNDS)]
        turns = {name: iter(prompts) for name in ("small", "calm")}
        found = in_turns(
            {
                "small": lambda: answered(small, next(turns["small"]), most),
                "calm": lambda: answered(calm, next(turns["calm"]), most),
            }
        )
        preempted = small.metrics()["python_mp_preemptions_total"]
    pairs = list(zip(found["small"], found["calm"], strict=True))
    wrong = sum(a.ids != b.ids for mine, other in pairs for a, b in zip(mine, other, strict=True))
    rates = {name: [rate(each) for each in rounds] for name, rounds in found.items()}
    slowest = [max(max(each.gaps()) for each in answers) for answers in found["small"]]
    said = (
        f"{spread(rates['small'])} against {spread(rates['calm'])} tokens/s; {preempted:.0f}"
        f" preemptions of {count * ROUNDS} streams, {wrong} of them wrong; longest wait between"
        f" two tokens {spread(slowest)} s"
    )
    what = "a cache for a fifth of what asks / as many streams as fit"
    yield at_least(0.85, what, ratios(rates["small"], rates["calm"]), said)
    yield at_most(0, "wrong answers among them", [float(wrong)], said)
    yield at_least(0.1, "preemptions a stream", [preempted / count / ROUNDS], said)


def shared_prefix() -> Iterator[Record]:
    with decoder(kv_cache_blocks=1100) as replica:
        answered(replica, different(8, 64), 8)

        def first(behind: int) -> float:
            before = different(1, behind)[0]
            prompts = different(SHARERS, SHARED + OWN - behind, before)
            return median(each.first for each in answered(replica, prompts, 2))

        found = in_turns({"shared": lambda: first(SHARED), "own": lambda: first(0)})
    said = f"{spread(found['shared'])} s, without {spread(found['own'])} s"
    what = f"first token of {SHARERS} that share {SHARED} of {SHARED + OWN} tokens / without"
    yield at_most(0.35, what, ratios(found["shared"], found["own"]), said)


def _until(is_so: Callable[[], bool]) -> None:
    end = perf_counter() + LIMIT
    while not is_so():
        if perf_counter() > end:
            raise TimeoutError(f"streams did not come as far as they should within {LIMIT:.0f} s")
        time.sleep(0.01)
