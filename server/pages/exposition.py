"""GET /metrics: what the watcher knows, for Prometheus. How it computes is on Triton's own page."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import server
from server.watch.memory_use import memory, shared_memory

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("starting", "serving", "restarting", "down")
"""Of a replica: python_mp/front/status.py."""
SHARDED = "python_mp"
JSON = dict[str, Any]


class Metrics(Collector):
    """One page, made when somebody asks for it; takes about a millisecond.

    Attributes:
        status: the body of /status as it is now; empty before there is one.
    """

    def __init__(self) -> None:
        self.status: JSON = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def page(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing, so that registering collects nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        status = self.status
        if status:
            yield from _server(status)
            yield from _models(status["models"])
            yield _paths(status["models"])
            yield _errors(status["errors"])
        yield from _machine()


def _server(status: JSON) -> Iterator[Metric]:
    about = status["server"]
    yield _gauge("ready", "What /ready says", status["ready"])
    yield _gauge("draining", "Whether it was told to stop", status["draining"])
    yield _gauge("up", "Whether tritonserver's process lives", about["pid"] is not None)
    restarts = "Starts of tritonserver after it had died"
    yield CounterMetricFamily("tritonserver_restarts", restarts, about["restarts"])
    info = GaugeMetricFamily(
        "tritonserver_info",
        "Triton's version and this project's",
        labels=["version", "project_version"],
    )
    info.add_metric([about["version"], server.__version__], 1)
    yield info


def _models(models: JSON) -> Iterator[Metric]:
    ready = GaugeMetricFamily("tritonserver_model_ready", "Whether it serves", labels=["model"])
    unbuilt = GaugeMetricFamily(
        "tritonserver_model_unbuilt", "Whether it is still to be built", labels=["model"]
    )
    repairs = CounterMetricFamily(
        "tritonserver_model_restarts", "Loads because a stub had died", labels=["model"]
    )
    reloads = CounterMetricFamily(
        "tritonserver_model_reloads",
        "Loads because its files had changed",
        labels=["model", "result"],
    )
    replicas = GaugeMetricFamily(
        "tritonserver_replicas", "Replicas of a sharded model", labels=["model", "state"]
    )
    for name, model in models.items():
        ready.add_metric([name], model["ready"])
        unbuilt.add_metric([name], model["unbuilt"])
        repairs.add_metric([name], model["restarts"])
        for result, count in model["reloads"].items():
            reloads.add_metric([name, result], count)
        if model["backend"] == SHARDED:
            states = [each["state"] for each in model["replicas"]]
            for state in STATES:
                replicas.add_metric([name, state], states.count(state))
    yield from (ready, unbuilt, repairs, reloads, replicas)


def _paths(models: JSON) -> Metric:
    """Lets queries add up the steps of an ensemble, whatever its models are called."""
    paths = GaugeMetricFamily(
        "tritonserver_model_step",
        "1: requests to `ensemble` pass `model`; a model that is no ensemble is its own",
        labels=["ensemble", "model", "part"],
    )
    for name, model in models.items():
        steps = model["steps"] or [name]
        backends = [models.get(step, {}).get("backend") for step in steps]
        for step, part in zip(steps, parts(backends), strict=True):
            paths.add_metric([name, step, part], 1)
    return paths


def _errors(loops: JSON) -> Metric:
    errors = CounterMetricFamily(
        "tritonserver_watcher_errors", "Unexpected errors in the watcher's loops", labels=["loop"]
    )
    for name, loop in loops.items():
        errors.add_metric([name], loop["errors"])
    return errors


def parts(backends: list[str | None]) -> list[str]:
    """What each step does for the ensemble: `pre` and `post` are what stands before and after the
    sharded models, those and what is between them are `forward`. So is all where none is sharded.
    """
    sharded = [at for at, backend in enumerate(backends) if backend == SHARDED]
    first, last = (sharded[0], sharded[-1]) if sharded else (0, len(backends))
    return [
        "pre" if at < first else "post" if at > last else "forward" for at in range(len(backends))
    ]


def _machine() -> Iterator[Metric]:
    held_now, segments = memory(), shared_memory()
    held = "Memory that cannot be given back, of the container, else of the machine"
    yield _gauge("memory_bytes", held, held_now.used)
    yield _gauge("memory_limit_bytes", "As much there is of it", held_now.limit)
    yield _gauge("shm_bytes", "Taken of /dev/shm", segments.used)
    yield _gauge("shm_limit_bytes", "Size of /dev/shm", segments.limit)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tritonserver_{name}", help, value)
