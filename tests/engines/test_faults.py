"""Faults inside a collective: a real all-reduce that some rank does not come to."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.configs import module_config
from tests.support.processes import until
from tests.support.replicas import Served, counted, pids, served

# Sums its input over the ranks, many times. What a file named RANK.FAULT asks for, that rank does
# once, between two all-reduces.
MODULE = """
import pathlib, time
import torch
from torch import nn

FOLDER = pathlib.Path({folder!r})


class Sum(nn.Module):
    def __init__(self, shard):
        super().__init__()
        self.shard = shard

    def forward(self, batch, hidden):
        x = batch["X"].clone()
        for step in range(50):
            if step == 25:
                x = x + self.trouble(x)
            x = self.shard.all_reduce(x / self.shard.size)
        return {{"Y": x}}

    def trouble(self, x):
        for path in FOLDER.glob(f"{{self.shard.rank}}.*"):
            path.unlink()
            fault = path.suffix[1:]
            if fault == "raise":
                raise ValueError("raised as asked")
            if fault == "skip":
                return torch.zeros_like(x) + self.shard.all_reduce(x.clone())  # one too many
            if fault == "slow":
                until = time.monotonic() + 4
                while time.monotonic() < until:
                    torch.randn(64, 64) @ torch.randn(64, 64)
        return 0


build = Sum
"""
NUMBERS = itertools.count()
"""No request twice: what ended two groups is remembered."""


@pytest.fixture(scope="module")
def summing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """Two ranks of MODULE, and the folder where faults are asked for."""
    folder, asked = tmp_path_factory.mktemp("summing"), tmp_path_factory.mktemp("asked")
    text = MODULE.format(folder=str(asked))
    config = module_config(folder, text, tensor_parallel_size=2, hang_seconds=1)
    with served(config, folder) as replica:
        yield replica, asked


class Askers:
    """Four that ask without a pause, and count what is right."""

    def __init__(self, replica: Served) -> None:
        self._replica = replica
        self._stop = threading.Event()
        self.wrong: list[Any] = []
        self.right = 0

    def __enter__(self) -> Askers:
        self._pool = ThreadPoolExecutor(4)
        for _ in range(4):
            self._pool.submit(self._run)
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        """After all is as before."""
        self.go_on()
        self._stop.set()
        self._pool.shutdown()

    def go_on(self) -> None:
        more = self.right + 20
        until(lambda: self.right > more)

    def _run(self) -> None:
        while not self._stop.is_set():
            x = np.full((1, 4), next(NUMBERS), np.float32)
            try:
                assert np.array_equal(x, self._replica.ask(X=x).result(20)["Y"])
                self.right += 1
            except Exception as error:
                self.wrong.append(error)


@pytest.mark.parametrize(("fault", "rank"), [("skip", 1), ("raise", 0), ("slow", 1)])
def test_nothing_is_lost_to_a_fault_in_a_collective(
    summing: tuple[Served, Path], caplog: pytest.LogCaptureFixture, fault: str, rank: int
) -> None:
    replica, asked = summing
    (before,) = counted(replica, "generation")
    with Askers(replica) as askers:
        (asked / f"{rank}.{fault}").touch()
        until(lambda: not any(asked.iterdir()))
    if fault == "raise":  # Its own doing; only the one that was alone is not asked again.
        assert [str(error) for error in askers.wrong] in ([], ["ValueError: raised as asked"])
    else:
        assert askers.wrong == []
    assert counted(replica, "generation", "ranks_alive") == [before + (fault != "slow"), 2]
    if fault == "skip":
        assert "no rank has got on" in caplog.text
        assert "in all_reduce" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_nothing_is_lost_to_a_signal(summing: tuple[Served, Path], number: signal.Signals) -> None:
    replica, _ = summing
    (before,) = counted(replica, "generation")
    with Askers(replica) as askers:
        os.kill(pids(replica)[1], number)
        until(lambda: counted(replica, "generation", "ranks_alive") == [before + 1, 2])
    assert askers.wrong == []
