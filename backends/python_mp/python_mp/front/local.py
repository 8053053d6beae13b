"""A replica without Triton, in the process that asks it: to verify engines, to measure, to test."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..model import layout
from ..model.config import ModelConfig
from ..model.errors import PythonMpError
from ..model.request import Array, Request, read_request
from .metrics import Metrics
from .place import cores
from .replica import Replica
from .schedule.reading import StreamReader
from .schedule.stream import StreamAnswer


class FutureAnswer:
    """An Answer to wait for. As Triton does with what `execute` returns, it reads what comes before
    `read` only then."""

    def __init__(self, *, keeps: bool = False) -> None:
        self.future: Future[dict[str, Array]] = Future()
        self.cancelled = False
        self.keeps = keeps
        self._kept: Mapping[str, Array] | None = None
        self._lock = Lock()

    @property
    def is_there(self) -> bool:
        return self._kept is not None or self.future.done()

    def send(self, outputs: Mapping[str, Array]) -> None:
        with self._lock:
            if self.keeps:
                self._kept = outputs
                return
        self.future.set_result({name: array.copy() for name, array in outputs.items()})

    def read(self) -> None:
        with self._lock:
            self.keeps = False
        if self._kept is not None:
            self.send(self._kept)

    def fail(self, error: PythonMpError) -> None:
        self.future.set_exception(error)

    def is_cancelled(self) -> bool:
        return self.cancelled


class DictSink:
    """Metrics as a dictionary: (name, labels but the model's) -> value."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, kind: str, name: str, help: str, labels: Mapping[str, str], value: float) -> None:
        more = ",".join(f"{k}={v}" for k, v in labels.items() if k not in ("model", "replica"))
        key = f"{name}{{{more}}}" if more else name
        self.values[key] = value if kind == "GAUGE" else self.values.get(key, 0.0) + value


class Local:
    """A running replica: `ask` returns a future of its outputs."""

    def __init__(
        self, config: ModelConfig, index: int, replica: Replica, sink: DictSink, metrics: Metrics
    ) -> None:
        self.config = config
        self.index = index
        self.replica = replica
        self._reader = StreamReader(config) if config.parameters.generates else None
        self.attend = 0.0
        """Seconds for which the asking thread does the replica's work, as `execute` does."""
        self._sink = sink
        self._metrics = metrics

    def ask_all(self, requests: Sequence[Mapping[str, Array]]) -> list[Future[Any]]:
        """All in one call, as Triton's dynamic batcher hands them over."""
        answers = [FutureAnswer(keeps=True) for _ in requests]
        read: list[Request] = []
        for inputs, answer in zip(requests, answers, strict=True):
            try:
                read.append(read_request(inputs, self.config, answer))
            except PythonMpError as error:
                answer.fail(error)
        self.replica.submit_and_attend(read, lambda: all(a.is_there for a in answers), self.attend)
        for answer in answers:
            answer.read()
        return [answer.future for answer in answers]

    def ask(self, **inputs: Array) -> Future[Any]:
        return self.ask_all([inputs])[0]

    def stream(self, prompt: Sequence[int], answer: StreamAnswer, **parameters: Any) -> None:
        """One prompt of a decoder; `answer` gets its parts. Raises InvalidInput."""
        assert self._reader is not None
        inputs = {"INPUT_IDS": np.array([prompt], np.int32)}
        self.replica.submit([self._reader.read(inputs, parameters, answer)])

    def metrics(self) -> dict[str, float]:
        self._metrics.flush()
        return self._sink.values


@contextmanager
def served(config: ModelConfig, runtime: Path, index: int = 0) -> Iterator[Local]:
    """Starts one replica of the model on this process's cores; stops it at the end.

    Raises:
        LoadError: with the first rank's reason.
    """
    sink = DictSink()
    labels = {"model": config.name, "replica": str(index)}
    metrics = Metrics(sink, labels, streams=config.parameters.generates)
    cpus = cores.share([tuple(os.sched_getaffinity(0))] * config.ranks_per_host)
    replica = Replica(config, layout.replicas(config)[index], cpus, runtime, metrics)
    replica.start()
    try:
        yield Local(config, index, replica, sink, metrics)
    finally:
        replica.stop()
