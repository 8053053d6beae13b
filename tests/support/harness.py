"""Replicas without Triton: configs made in memory, answers that are futures."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from python_mp.config import ModelConfig, parse
from python_mp.front.local import FutureAnswer, served
from python_mp.front.local import Local as Served
from python_mp.rank_spec import RankSpec

__all__ = ["FutureAnswer", "Served", "served"]

INT32, FP32 = "TYPE_INT32", "TYPE_FP32"
LIMIT = 30.0
"""Seconds for any answer."""
Array = np.ndarray[Any, Any]
Fault = tuple[int, int, int]
"""What, in which rank, argument: see engines/echo.py."""
NO_FAULT: Fault = (0, 0, 0)


def tensor(name: str, dtype: str, *dims: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": dtype, "dims": [str(dim) for dim in dims], **more}


def raw_config(
    name: str,
    inputs: Sequence[dict[str, Any]],
    outputs: Sequence[dict[str, Any]],
    *,
    replicas: int = 1,
    passive: int | None = None,
    max_batch_size: int = 64,
    **parameters: Any,
) -> dict[str, Any]:
    """What Triton would hand over for a config.pbtxt with these entries."""
    if passive is None:
        sizes = (parameters.get(f"{axis}_parallel_size", 1) for axis in ("tensor", "pipeline"))
        passive = replicas * (prod(sizes) - 1)
    groups = [{"name": "lead", "kind": "KIND_CPU", "count": replicas, "passive": False}]
    if passive:
        groups.append({"name": "shard", "kind": "KIND_CPU", "count": passive, "passive": True})
    return {
        "name": name,
        "max_batch_size": max_batch_size,
        "input": list(inputs),
        "output": list(outputs),
        "instance_group": groups,
        "parameters": {key: {"string_value": str(value)} for key, value in parameters.items()},
    }


def model_config(repository: Path, *tensors: Sequence[dict[str, Any]], **more: Any) -> ModelConfig:
    """Of the model in this folder; see `raw_config`."""
    raw = raw_config(repository.name, *tensors, **more)
    return parse(json.dumps(raw), str(repository), "1")


def module_config(
    folder: Path,
    module: str,
    dims: Sequence[int] = (4,),
    output: Sequence[int] | None = None,
    *,
    ragged: bool = False,
    **more: Any,
) -> ModelConfig:
    """A model of engine torch with this module.py, float32 X [dims] to float32 Y."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "module.py").write_text(module)
    x = tensor("X", FP32, *dims, allow_ragged_batch=ragged)
    y = tensor("Y", FP32, *(dims if output is None else output))
    return model_config(folder, [x], [y], engine="torch", **more)


def echo_config(folder: Path, **more: Any) -> ModelConfig:
    """A model of engine echo: ragged X comes back as Y, and FAULT asks for trouble."""
    inputs = [tensor("X", INT32, -1, allow_ragged_batch=True), tensor("FAULT", INT32, 3)]
    return model_config(folder, inputs, [tensor("Y", INT32, -1)], engine="echo", **more)


def echo_input(*values: int, faults: Sequence[Fault] = (NO_FAULT,)) -> dict[str, Array]:
    """A sequence of these values for each fault."""
    return {"X": np.array([values] * len(faults), np.int32), "FAULT": np.array(faults, np.int32)}


def ask(replica: Served, *numbers: int, fault: Fault = NO_FAULT) -> Future[Any]:
    """One sequence, of a model of `echo_config`."""
    return replica.ask(**echo_input(*numbers, faults=[fault]))


def values(futures: Sequence[Future[Any]]) -> list[list[int]]:
    """What came back of each sequence asked for."""
    return [future.result(LIMIT)["Y"][0].tolist() for future in futures]


def counted(replica: Served, *names: str) -> list[float]:
    """The replica's metrics of these names, without python_mp_."""
    metrics = replica.metrics()
    return [metrics[f"python_mp_{name}"] for name in names]


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
        scratch="",
    )


def pids(replica: Served) -> list[int]:
    """The ranks' processes, in rank order."""
    ranks = rank_processes(os.getpid())
    return [ranks[index, rank] for index, rank in sorted(ranks) if index == replica.index]


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


def cpu_seconds(pid: int) -> float:
    """Of a process and the children that it has reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


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
