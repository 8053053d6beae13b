"""A model's stubs without Triton: model.py, and clients that ask it, in one process.

    python -m tests.osfaults.stub BOARD REPOSITORY

Its own part makes no system call but naps, so that every other one is the front's.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.osfaults.board import Board, nap
from tests.support import triton_stub
from tests.support.configs import INT32, raw_config, tensor
from tests.support.processes import ROOT
from tests.support.triton_stub import InferenceResponse, Tensor, TritonError

CONFIG = raw_config(
    *("echo", [tensor("X", INT32, 2)], [tensor("Y", INT32, 2)]),
    replicas=2,
    max_batch_size=8,
    engine="echo",
    tensor_parallel_size=2,
)
MODEL = ROOT / "backends" / "python_mp" / "model.py"
MOST_IN_FLIGHT = 8


class Request:
    """A client's, and its response sender."""

    def __init__(self, number: int, replica: int, traffic: Traffic) -> None:
        self.replica, self.asked = replica, time.monotonic()
        self._x = np.array([[number, -number]], np.int32)
        self._traffic = traffic
        self._answered = False

    def inputs(self) -> list[Tensor]:
        return [Tensor("X", self._x)]

    def get_response_sender(self) -> Request:
        return self

    def timeout(self) -> int:
        return 0

    def is_cancelled(self) -> bool:
        return False

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        twice, self._answered = self._answered, True
        right = not response.error and np.array_equal(response.outputs["Y"], self._x)
        self._traffic.book(self, response.error, wrong=twice or not (response.error or right))


class Traffic:
    """Clients that ask each replica in turn."""

    def __init__(self, board: Board) -> None:
        self.leads: list[Any] = []
        self.asked = self.answered = self.refused = self.wrong = 0
        self._last = [0.0, 0.0]
        self._board = board
        self._lock = threading.Lock()
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def in_flight(self) -> int:
        return self.asked - self.answered - self.refused

    def book(self, request: Request, error: TritonError | None, *, wrong: bool) -> None:
        with self._lock:
            self.answered += not error
            self.refused += bool(error)
            self.wrong += wrong
            if not error:
                self._last[request.replica] = max(self._last[request.replica], request.asked)

    def _run(self) -> None:
        while True:
            try:
                for replica, lead in enumerate(self.leads):
                    if self.in_flight < MOST_IN_FLIGHT:
                        self._ask(replica, lead)
                ready = [lead.is_ready() for lead in self.leads] or [False, False]
                counts = self.asked, self.answered, self.refused, self.wrong, *self._last, *ready
                self._board.counts[:] = counts
            except MemoryError:  # Of ours, not the front's: `_ask` takes care of that.
                pass
            nap()

    def _ask(self, replica: int, lead: Any) -> None:
        request = Request(self.asked, replica, self)
        self.asked += 1
        try:
            responses = lead.execute([request])
        except Exception as error:  # Triton answers it with this text then.
            responses = [InferenceResponse(error=TritonError(str(error), TritonError.INTERNAL))]
        for response in responses:
            if response is not None:
                request.send(response)


class Instance:
    """One that Triton would give a process; here it has a thread of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model: Any = None
        self.error = ""
        self._work: Callable[[], None] | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def do(self, work: Callable[[], None]) -> None:
        self._work = work

    @property
    def is_busy(self) -> bool:
        return self._work is not None

    def _run(self) -> None:
        while True:
            if self._work is not None:
                self.error = ""
                try:
                    self._work()
                except Exception as error:
                    self.error = str(error) or repr(error)
                self._work = None
            nap()


class Stub:
    def __init__(self, board: Board, repository: str) -> None:
        self._board = board
        self._repository = repository
        self._traffic = Traffic(board)
        self._instances = [Instance(name) for name in ("lead_0", "lead_1", "shard_0", "shard_1")]

    def run(self) -> None:
        """Obeys; an order is answered by the error that there was."""
        for order in self._board.orders():
            while True:
                try:
                    self._board.answer(getattr(self, f"_{order}")() or "")
                    break
                except MemoryError:
                    nap()

    def _nothing(self) -> None: ...

    def _load(self) -> str:
        try:
            module = triton_stub.run(MODEL)
        except Exception as error:  # Triton says this text.
            return str(error) or repr(error)
        for instance in self._instances:
            instance.model = module.TritonPythonModel()
            arguments = triton_stub.arguments(json.dumps(CONFIG), self._repository, instance.name)
            instance.do(partial(instance.model.initialize, arguments))
        error = self._together()
        if not error:
            self._traffic.leads = [each.model for each in self._instances[:2]]
        return error

    def _settle(self) -> None:
        """No new request until all are answered."""
        leads, self._traffic.leads = self._traffic.leads, []
        while self._traffic.in_flight:
            nap()
        self._traffic.leads = leads

    def _unload(self) -> str:
        self._settle()
        self._traffic.leads = []
        for instance in self._instances:
            instance.do(instance.model.finalize)
        return self._together()

    def _together(self) -> str:
        while any(each.is_busy for each in self._instances):
            nap()
        return "; ".join(each.error for each in self._instances if each.error)


if __name__ == "__main__":
    sys.modules["triton_python_backend_utils"] = triton_stub.pb_utils()
    gc.freeze()
    Stub(Board(Path(sys.argv[1])), sys.argv[2]).run()
    os._exit(0)
