"""The replica's metrics on Triton's own /metrics page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonSink:
    """Triton's metric families, kept because a metric is gone with its family."""

    def __init__(self) -> None:
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}

    def add(self, kind: str, name: str, help: str, labels: Mapping[str, str], value: float) -> None:
        key = name, tuple(labels.items())
        if key not in self._metrics:
            self._metrics[key] = self._family(kind, name, help).Metric(labels=labels)
        metric = self._metrics[key]
        metric.set(value) if kind == "GAUGE" else metric.increment(value)

    def clear(self) -> None:
        """Else the series of a version that was replaced stay on /metrics, and in memory."""
        self._metrics.clear()
        self._families.clear()

    def _family(self, kind: str, name: str, help: str) -> Any:
        if name not in self._families:
            self._families[name] = pb_utils.MetricFamily(
                name=name, description=help, kind=getattr(pb_utils.MetricFamily, kind)
            )
        return self._families[name]
