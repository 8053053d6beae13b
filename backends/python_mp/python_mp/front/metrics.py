"""Metrics on Triton's own /metrics page.

Every update of a Triton metric is a round trip from the stub to the server, so the hot path only
adds to numbers held here and a thread passes the differences on once a second. Histograms are
written as Prometheus stores them, `_bucket{le=}`, `_sum` and `_count`, because Triton's own take
one round trip an observation.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Protocol

from ..machine.net import THREADS, Net
from ..machine.thread import Thread
from .flights import Flight

FLUSH_SECONDS = 1.0
BUCKETS = (*(m * 10.0**e for e in range(-5, 1) for m in (1, 2, 5)), 10.0)
"""Upper bounds in seconds, 10 us to 10 s."""

COUNTERS = {
    "batches_total": "Batches dispatched",
    "requests_total": "Requests dispatched",
    "tokens_total": "Packed rows dispatched",
    "tokens_saved_total": "Rows that padding to the longest of each batch would have added",
    "tokens_padded_total": "Places without a row in rectangles, of models that take no packed rows",
    "restarts_total": "Generations started after the first",
    "replays_total": "Requests dispatched again because their group died",
    "hangs_total": "Generations ended because they made no progress",
    "handed_over_total": "Requests that another replica computed while this one had no ranks",
    "refused_total": "Requests refused without being computed, by reason",
    "prompt_tokens_total": "Tokens of prompts that began to be computed",
    "prompt_tokens_cached_total": "Of these, tokens that were found in the KV cache",
    "generated_tokens_total": "Generated tokens that were sent",
    "parts_total": "Parts of generated answers that were sent",
    "preemptions_total": "Streams that lost their blocks of the KV cache to older ones",
    "internal_errors_total": "Errors that nobody expected, by the thread that met them and went on",
}
GAUGES = {
    "generation": "Number of the present generation of ranks",
    "ranks_alive": "Ranks that are up and serving",
    "queue_requests": "Requests that wait for a batch",
    "queue_bytes": "Their inputs' size",
    "running_sequences": "Streams that have blocks of the KV cache",
    "kv_blocks": "Blocks of the KV cache",
    "kv_blocks_used": "Blocks that streams use",
    "kv_blocks_cached": "Blocks that nobody uses and that hold a prefix",
    "start_seconds": "Time that the present generation took to start, by phase",
}
HISTOGRAMS = {
    "queue_seconds": "Time from execute to dispatch, per request",
    "batch_seconds": "Time from dispatch until all ranks are through, per batch",
    "request_seconds": "Time from execute until all ranks are through, per request",
    "first_token_seconds": "Time from execute to the first generated token, per stream",
    "between_tokens_seconds": "Time from a generated token to the next one, per stream",
    "forward_seconds": "Time a rank took for a batch, waiting for peers included",
    "collective_wait_seconds": "Time a rank waited for its peers during a batch",
}

OF_STREAMS = {
    *("prompt_tokens_total", "prompt_tokens_cached_total", "generated_tokens_total"),
    *("parts_total", "preemptions_total", "running_sequences"),
    *("kv_blocks", "kv_blocks_used", "kv_blocks_cached"),
    *("first_token_seconds", "between_tokens_seconds"),
}
"""Those that only models that generate have."""

REASONS = ("invalid", "queue_full", "down", "timeout", "cancelled", "poison")
LABELLED = {
    "refused_total": ("reason", REASONS),
    "internal_errors_total": ("thread", THREADS),
    "start_seconds": ("phase", ("import", "spawn", "rendezvous", "load", "warm_up")),
}
"""The label that some of them have besides, and its values."""

Labels = tuple[tuple[str, str], ...]


class Sink(Protocol):
    """Where numbers go; `TritonSink` in model.py, a dictionary in tests."""

    def add(self, kind: str, name: str, help: str, labels: Mapping[str, str], value: float) -> None:
        """Adds `value` to a COUNTER, or sets a GAUGE to it."""


class _Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0


class Metrics:
    """Numbers of one replica; `labels` go on each of them. Its errors are counted here, so this
    is where the replica's net is.

    Args:
        streams: the model generates.
    """

    def __init__(self, sink: Sink, labels: Mapping[str, str], *, streams: bool = False) -> None:
        self.net = Net(lambda thread: self.count("internal_errors_total", thread=thread))
        self._sink = sink
        self._labels = tuple(labels.items())
        self._lock = threading.Lock()
        self._values: dict[tuple[str, Labels], float] = defaultdict(float)
        self._histograms: dict[tuple[str, Labels], _Histogram] = defaultdict(_Histogram)
        self._sent: dict[tuple[str, Labels], float] = {}
        self._stopping = threading.Event()
        self._thread = Thread(target=self._run, name="metrics", daemon=True)
        for name in {*COUNTERS, *GAUGES} - (set() if streams else OF_STREAMS):
            label, values = LABELLED.get(name, ("", ("",)))
            for value in values:
                self._values[self._key(name, {label: value} if label else {})] = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Passes the last differences on and ends the thread."""
        self._stopping.set()
        self._thread.join()

    def count(self, name: str, value: float = 1.0, **labels: Any) -> None:
        with self._lock:
            self._values[self._key(name, labels)] += value

    def gauge(self, name: str, value: float, **labels: Any) -> None:
        with self._lock:
            self._values[self._key(name, labels)] = value

    def observe(self, name: str, *seconds: float, **labels: Any) -> None:
        with self._lock:
            histogram = self._histograms[self._key(name, labels)]
            for each in seconds:
                histogram.counts[bisect_left(BUCKETS, each)] += 1
            histogram.total += sum(seconds)

    def _key(self, name: str, labels: Mapping[str, Any]) -> tuple[str, Labels]:
        if not labels:
            return name, self._labels
        return name, (*self._labels, *((label, str(value)) for label, value in labels.items()))

    def dispatched(self, flight: Flight, waiting: int) -> None:
        """Books a batch that goes to the ranks, and how many requests still wait."""
        batch = flight.batch
        self.count("batches_total")
        self.count("requests_total", len(batch.begun))
        self.count("tokens_total", batch.tokens)
        self.count("tokens_saved_total", batch.tokens_saved)
        self.gauge("queue_requests", waiting)
        self.observe("queue_seconds", *(flight.dispatched - r.arrived for r in batch.begun))

    def landed(self, flight: Flight) -> None:
        """Books a batch that every rank is through with."""
        now = time.perf_counter()
        self.observe("batch_seconds", now - flight.dispatched)
        self.observe("request_seconds", *(now - r.arrived for r in flight.batch.ended))
        self.count("tokens_padded_total", max((step.padded for step in flight.steps), default=0))
        for step in flight.steps:
            where = {"rank": step.rank} | ({"host": step.host} if step.host else {})
            self.observe("forward_seconds", step.compute, **where)
            self.observe("collective_wait_seconds", step.waited, **where)

    def flush(self) -> None:
        """Passes on what changed since the last time."""
        with self._lock:
            values = dict(self._values)
            for (name, labels), histogram in self._histograms.items():
                values |= _series(name, labels, histogram)
        for (name, labels), value in values.items():
            before = self._sent.get((name, labels))
            if value == before:
                continue
            kind = "GAUGE" if name in GAUGES else "COUNTER"
            change = value if kind == "GAUGE" else value - (before or 0.0)
            self._sink.add(kind, f"python_mp_{name}", _help(name), dict(labels), change)
            self._sent[name, labels] = value

    def _run(self) -> None:
        self.net.loop("metrics", self._turn, self._stopping)
        self.net.hold("metrics", self.flush)

    def _turn(self) -> None:
        if not self._stopping.wait(FLUSH_SECONDS):
            self.flush()


def _series(name: str, labels: Labels, histogram: _Histogram) -> dict[tuple[str, Labels], float]:
    series: dict[tuple[str, Labels], float] = {}
    count = 0
    for bound, observed in zip((*BUCKETS, float("inf")), histogram.counts, strict=True):
        count += observed
        le = "+Inf" if bound == float("inf") else f"{bound:g}"
        series[f"{name}_bucket", (*labels, ("le", le))] = count
    return series | {(f"{name}_sum", labels): histogram.total, (f"{name}_count", labels): count}


def _help(name: str) -> str:
    plain = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
    return (COUNTERS | GAUGES | HISTOGRAMS)[plain]
