"""Numbers on their way to Triton's /metrics."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.front.metrics import BUCKETS, COUNTERS, GAUGES, REASONS, Metrics

LABELS = {"model": "m", "replica": "0"}


class Calls:
    """A sink that remembers every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Mapping[str, str], float]] = []

    def add(self, kind: str, name: str, help: str, labels: Mapping[str, str], value: float) -> None:
        assert help
        self.calls.append((kind, name, dict(labels), value))

    def take(self) -> list[tuple[str, str, Mapping[str, str], float]]:
        taken, self.calls = self.calls, []
        return taken


@pytest.fixture
def sink() -> Calls:
    return Calls()


@pytest.fixture
def metrics(sink: Calls) -> Metrics:
    """Past its first flush, which shows every number."""
    metrics = Metrics(sink, LABELS)
    metrics.flush()
    sink.take()
    return metrics


def test_every_counter_and_gauge_is_there_from_the_start() -> None:
    sink = Calls()
    Metrics(sink, LABELS).flush()
    assert {(kind, name) for kind, name, _, _ in sink.calls} == {
        *(("COUNTER", f"python_mp_{name}") for name in COUNTERS),
        *(("GAUGE", f"python_mp_{name}") for name in GAUGES),
    }
    assert all(LABELS.items() <= labels.items() for _, _, labels, _ in sink.calls)
    assert {value for *_, value in sink.calls} == {0.0}
    refused = [labels for _, name, labels, _ in sink.calls if name == "python_mp_refused_total"]
    assert [labels["reason"] for labels in refused] == list(REASONS)


def test_a_counter_passes_differences_once(metrics: Metrics, sink: Calls) -> None:
    for _ in range(3):
        metrics.count("tokens_total", 5)
    metrics.flush()
    assert sink.take() == [("COUNTER", "python_mp_tokens_total", LABELS, 15)]
    metrics.count("tokens_total")
    metrics.flush()
    metrics.flush()
    assert sink.take() == [("COUNTER", "python_mp_tokens_total", LABELS, 1)]
    metrics.start()
    metrics.count("tokens_total", 2)
    metrics.stop()
    assert ("COUNTER", "python_mp_tokens_total", LABELS, 2) in sink.take()


def test_a_gauge_passes_its_last_value_if_it_changed(metrics: Metrics, sink: Calls) -> None:
    for value in (3, 9, 7):
        metrics.gauge("queue_requests", value)
    metrics.flush()
    assert sink.take() == [("GAUGE", "python_mp_queue_requests", LABELS, 7)]
    metrics.gauge("queue_requests", 9)
    metrics.gauge("queue_requests", 7)
    metrics.flush()
    assert sink.take() == []
    metrics.gauge("queue_requests", 0)
    metrics.flush()
    assert sink.take() == [("GAUGE", "python_mp_queue_requests", LABELS, 0)]


@given(st.lists(st.lists(st.floats(0, 100), max_size=8), min_size=1, max_size=3))
def test_a_histogram_is_what_prometheus_stores(rounds: list[list[float]]) -> None:
    sink = Calls()
    seen: dict[tuple[str, str], float] = {}
    metrics = Metrics(sink, LABELS)
    for seconds in rounds:
        for each in seconds:
            metrics.observe("forward_seconds", each, rank=1)
            metrics.observe("forward_seconds", 7.0, rank=0)  # labels keep them apart
        metrics.flush()
    for kind, name, labels, value in sink.take():
        if "forward_seconds" in name and labels["rank"] == "1":
            assert kind == "COUNTER"
            assert labels.items() >= {**LABELS, "rank": "1"}.items()
            key = name.removeprefix("python_mp_forward_seconds_"), labels.get("le", "")
            seen[key] = seen.get(key, 0.0) + value
    observed = [each for seconds in rounds for each in seconds]
    if not observed:
        assert seen == {}
        return
    for bound in BUCKETS:
        count = sum(each <= bound for each in observed)
        assert seen.get(("bucket", f"{bound:g}"), 0) == count
    assert seen["bucket", "+Inf"] == seen["count", ""] == len(observed)
    assert seen.get(("sum", ""), 0.0) == pytest.approx(sum(observed))


def test_a_request_s_time_is_from_its_arrival(
    metrics: Metrics, sink: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting and computing: two that arrived at 1 s and 4 s, sent on at 5 s, through at 7 s."""
    clock = SimpleNamespace(perf_counter=lambda: 7.0)
    monkeypatch.setattr("python_mp.front.metrics.time", clock)
    requests = [SimpleNamespace(arrived=1.0), SimpleNamespace(arrived=4.0)]
    flight: Any = SimpleNamespace(
        dispatched=5.0, steps=(), batch=SimpleNamespace(requests=requests)
    )
    metrics.landed(flight)
    metrics.flush()
    sent = {name: value for _, name, _, value in sink.take() if not name.endswith("_bucket")}
    assert (sent["python_mp_request_seconds_sum"], sent["python_mp_request_seconds_count"]) == (
        9,
        2,
    )
    assert (sent["python_mp_batch_seconds_sum"], sent["python_mp_batch_seconds_count"]) == (2, 1)
