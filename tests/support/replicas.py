"""Replicas without Triton, whose answers are futures."""

import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from python_mp.front.local import FutureAnswer, served
from python_mp.front.local import Local as Served
from python_mp.model.config import ModelConfig
from python_mp.model.rank_spec import RankSpec
from tests.support.processes import rank_processes

__all__ = ["FutureAnswer", "Served", "served"]

LIMIT = 30.0
"""Seconds for any answer."""
Array = np.ndarray[Any, Any]
Fault = tuple[int, int, int]
"""What, in which rank, argument: see engines/echo.py."""
NO_FAULT: Fault = (0, 0, 0)


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


def lone_rank(config: ModelConfig, device: int = -1) -> RankSpec:
    """The only rank of a model, to load its engine inside the test's own process."""
    nothing: dict[str, Any] = dict.fromkeys(("replica", "rank", "tensor_rank", "stage"), 0)
    return RankSpec(
        source=config.source,
        **nothing | {"slots": 0, "half": 0},
        device=device,
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
