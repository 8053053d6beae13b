"""Numbers on their way to Triton's /metrics."""

from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.front.metrics import BUCKETS, COUNTERS, GAUGES, OF_STREAMS, REASONS, Metrics

LABELS = {"model": "m", "replica": "0"}


class Prometheus(defaultdict[tuple[str, ...], float]):
    """What is stored of what it is passed: by name, and values of labels."""

    def add(self, kind: str, name: str, help: str, labels: Mapping[str, str], value: float) -> None:
        assert help
        assert LABELS.items() <= labels.items()
        key = (name.removeprefix("python_mp_"), *[*labels.values()][2:])
        assert (kind == "GAUGE") == (key[0] in GAUGES)
        self[key] = value + (self[key] if kind == "COUNTER" else 0.0)


@pytest.mark.parametrize("streams", [False, True])
def test_every_counter_and_gauge_is_there_from_the_start(streams: bool) -> None:
    stored = Prometheus(float)
    metrics = Metrics(stored, LABELS, streams=streams)
    metrics.flush()
    assert {key[0] for key in stored} == {*COUNTERS, *GAUGES} - (set() if streams else OF_STREAMS)
    assert {key[1] for key in stored if key[0] == "refused_total"} == {*REASONS}
    assert set(stored.values()) == {0.0}
    metrics.start()
    metrics.count("tokens_total", 2)
    metrics.stop()
    assert stored["tokens_total",] == 2


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=5))
def test_counters_add_up_and_gauges_keep_their_last_value(rounds: list[list[int]]) -> None:
    stored = Prometheus(float)
    metrics = Metrics(stored, LABELS)
    for values in rounds:
        for each in values:
            metrics.count("tokens_total", each)
            metrics.gauge("queue_requests", each)
        metrics.flush()
    values_ = [0, *(each for values in rounds for each in values)]
    assert stored["tokens_total",] == sum(values_)
    assert stored["queue_requests",] == values_[-1]


@given(st.lists(st.lists(st.floats(0, 100), max_size=8), min_size=1, max_size=3))
def test_a_histogram_is_what_prometheus_stores(rounds: list[list[float]]) -> None:
    stored = Prometheus(float)
    metrics = Metrics(stored, LABELS)
    for seconds in rounds:
        for each in seconds:
            metrics.observe("forward_seconds", each, rank=1)
            metrics.observe("forward_seconds", 7.0, rank=0)  # labels keep them apart
        metrics.flush()
    observed = [each for seconds in rounds for each in seconds]
    for bound in BUCKETS:
        count = sum(each <= bound for each in observed)
        assert stored["forward_seconds_bucket", "1", f"{bound:g}"] == count
    for name in (("forward_seconds_bucket", "1", "+Inf"), ("forward_seconds_count", "1")):
        assert stored[name] == len(observed)
    assert stored["forward_seconds_sum", "1"] == pytest.approx(sum(observed))


def test_a_request_s_time_is_from_its_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting and computing: two that arrived at 1 s and 4 s, sent on at 5 s, through at 7 s."""
    clock = SimpleNamespace(perf_counter=lambda: 7.0)
    monkeypatch.setattr("python_mp.front.metrics.time", clock)
    requests = [SimpleNamespace(arrived=1.0), SimpleNamespace(arrived=4.0)]
    batch = SimpleNamespace(ended=requests)
    stored = Prometheus(float)
    metrics = Metrics(stored, LABELS)
    metrics.landed(SimpleNamespace(dispatched=5.0, steps=(), batch=batch))  # type: ignore[arg-type]
    metrics.flush()
    assert (stored["request_seconds_sum",], stored["request_seconds_count",]) == (9, 2)
    assert (stored["batch_seconds_sum",], stored["batch_seconds_count",]) == (2, 1)
