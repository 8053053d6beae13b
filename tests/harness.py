"""Replicas without Triton: configs made in memory, answers that are futures."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from python_mp import layout
from python_mp.batch import Request, read_request
from python_mp.config import ModelConfig, parse
from python_mp.errors import PythonMpError
from python_mp.front import cores
from python_mp.front.metrics import Metrics
from python_mp.front.replica import Replica
from python_mp.rank_spec import RankSpec

INT32, FP32 = "TYPE_INT32", "TYPE_FP32"
Array = np.ndarray[Any, Any]
Fault = tuple[int, int, int]
"""What, in which rank, argument: see engines/echo.py."""
NO_FAULT: Fault = (0, 0, 0)


def tensor(name: str, dtype: str, *dims: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": dtype, "dims": [str(dim) for dim in dims], **more}


def model_config(
    repository: Path,
    inputs: Sequence[dict[str, Any]],
    outputs: Sequence[dict[str, Any]],
    *,
    replicas: int = 1,
    passive: int | None = None,
    max_batch_size: int = 64,
    **parameters: Any,
) -> ModelConfig:
    """What Triton would hand over for a config.pbtxt with these entries."""
    if passive is None:
        sizes = (parameters.get(f"{axis}_parallel_size", 1) for axis in ("tensor", "pipeline"))
        passive = replicas * (prod(sizes) - 1)
    groups = [{"name": "lead", "kind": "KIND_CPU", "count": replicas, "passive": False}]
    if passive:
        groups.append({"name": "shard", "kind": "KIND_CPU", "count": passive, "passive": True})
    raw = {
        "name": repository.name,
        "max_batch_size": max_batch_size,
        "input": list(inputs),
        "output": list(outputs),
        "instance_group": groups,
        "parameters": {key: {"string_value": str(value)} for key, value in parameters.items()},
    }
    return parse(json.dumps(raw), str(repository), "1")


def echo_config(folder: Path, **more: Any) -> ModelConfig:
    """A model of engine echo: ragged X comes back as Y, and FAULT asks for trouble."""
    inputs = [tensor("X", INT32, -1, allow_ragged_batch=True), tensor("FAULT", INT32, 3)]
    return model_config(folder, inputs, [tensor("Y", INT32, -1)], engine="echo", **more)


def echo_input(*values: int, faults: Sequence[Fault] = (NO_FAULT,)) -> dict[str, Array]:
    """A sequence of these values for each fault."""
    return {"X": np.array([values] * len(faults), np.int32), "FAULT": np.array(faults, np.int32)}


def lone_rank(config: ModelConfig) -> RankSpec:
    """The only rank of a model, to load its engine inside the test's own process."""
    return RankSpec(
        source=config.source,
        **dict.fromkeys(("replica", "rank", "tensor_rank", "stage", "slots", "half"), 0),
        device=-1,
        generation=1,
        world_size=1,
        cpus=(),
        threads=len(os.sched_getaffinity(0)),
        store="",
    )


class FutureAnswer:
    """An Answer that a test can wait for."""

    def __init__(self) -> None:
        self.future: Future[dict[str, Array]] = Future()

    def send(self, outputs: Mapping[str, Array]) -> None:
        self.future.set_result({name: array.copy() for name, array in outputs.items()})

    def fail(self, error: PythonMpError) -> None:
        self.future.set_exception(error)


class DictSink:
    """Metrics as a dictionary: (name, labels but the model's) -> value."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, kind: str, name: str, help: str, labels: Mapping[str, str], value: float) -> None:
        more = ",".join(f"{k}={v}" for k, v in labels.items() if k not in ("model", "replica"))
        key = f"{name}{{{more}}}" if more else name
        self.values[key] = value if kind == "GAUGE" else self.values.get(key, 0.0) + value


class Served:
    """A running replica: `ask` returns a future of its outputs."""

    def __init__(
        self, config: ModelConfig, index: int, replica: Replica, sink: DictSink, metrics: Metrics
    ) -> None:
        self.config = config
        self.index = index
        self.replica = replica
        self.attend = 0.0
        """Seconds for which the asking thread does the replica's work, as `execute` does."""
        self._sink = sink
        self._metrics = metrics

    def ask_all(self, requests: Sequence[Mapping[str, Array]]) -> list[Future[Any]]:
        """All in one call, as Triton's dynamic batcher hands them over."""
        answers = [FutureAnswer() for _ in requests]
        read: list[Request] = []
        for inputs, answer in zip(requests, answers, strict=True):
            try:
                read.append(read_request(inputs, self.config, answer))
            except PythonMpError as error:
                answer.fail(error)
        futures = [answer.future for answer in answers]
        self.replica.submit_and_attend(read, lambda: all(map(Future.done, futures)), self.attend)
        return futures

    def ask(self, **inputs: Array) -> Future[Any]:
        return self.ask_all([inputs])[0]

    def metrics(self) -> dict[str, float]:
        self._metrics.flush()
        return self._sink.values

    def pids(self) -> list[int]:
        """The ranks' processes, in rank order."""
        ranks = rank_processes(os.getpid())
        return [ranks[replica, rank] for replica, rank in sorted(ranks) if replica == self.index]


@contextmanager
def served(config: ModelConfig, runtime: Path, index: int = 0) -> Iterator[Served]:
    """Starts one replica of the model on this process's cores; stops it at the end."""
    sink = DictSink()
    metrics = Metrics(sink, {"model": config.name, "replica": str(index)})
    cpus = cores.share([tuple(os.sched_getaffinity(0))] * config.world_size)
    replica = Replica(config, layout.replicas(config)[index], cpus, runtime, metrics)
    replica.start()
    try:
        yield Served(config, index, replica, sink, metrics)
    finally:
        replica.stop()


def rank_processes(front: int) -> dict[tuple[int, int], int]:
    """(replica, rank) -> pid of the ranks that the process `front` has, by way of its nursery."""
    found = {}
    for nursery in children(front):
        for pid in children(nursery):
            name, _, place = _read(Path(f"/proc/{pid}/comm")).decode().strip().partition(" ")
            if name == "rank":
                replica, rank = place.split(".")
                found[int(replica), int(rank)] = pid
    return found


def children(pid: int) -> list[int]:
    """Processes that any of its threads has started."""
    lists = Path("/proc", str(pid), "task").glob("*/children")
    return [int(child) for each in lists for child in _read(each).split()]


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits to be reaped does not."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return bool(fields) and fields[0] not in b"ZX"


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """For what nothing announces: asks until it holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.005)


def _read(path: Path) -> bytes:
    """Nothing of a process or thread that has ended."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
