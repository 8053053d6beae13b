"""A model's stubs without Triton: model.py, and clients that ask it, in one process.

    python -m tests.osfaults.stub BOARD

Its own part makes no system call but naps, so that every other one is the front's.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tests.osfaults.board import Board, nap

MODEL = Path(__file__).parents[2] / "backends" / "python_mp" / "model.py"
MOST_IN_FLIGHT = 8


class Tensor:
    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self.array


class TritonError(Exception):
    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED, UNSUPPORTED = range(5)

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)


class InferenceResponse:
    def __init__(self, tensors: Any = (), error: TritonError | None = None) -> None:
        self.outputs = {tensor.name: tensor.array for tensor in tensors}
        self.error = error


class Metric:
    def set(self, value: float) -> None: ...
    def increment(self, value: float) -> None: ...


class MetricFamily:
    COUNTER, GAUGE = "COUNTER", "GAUGE"

    def __init__(self, **_: Any) -> None: ...

    def Metric(self, labels: Any) -> Metric:  # noqa: N802
        return Metric()


class Logger:
    """Keeps the last lines; Triton's own writing is not what is tried."""

    lines: list[str] = []  # noqa: RUF012

    @classmethod
    def _keep(cls, line: str) -> None:
        cls.lines = [*cls.lines[-5:], line[-1500:]]

    log_info = log_warn = log_error = log_verbose = _keep


class Request:
    """A client's, and its response sender."""

    def __init__(self, number: int, replica: int, traffic: Traffic) -> None:
        self.replica, self.asked = replica, time.monotonic()
        self.tensors = {"X": Tensor("X", np.array([[number, -number]], np.int32))}
        self._traffic = traffic
        self._expected = [[number, -number]]
        self._answered = False

    def get_response_sender(self) -> Request:
        return self

    def timeout(self) -> int:
        return 0

    def is_cancelled(self) -> bool:
        return False

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        twice, self._answered = self._answered, True
        right = not response.error and response.outputs["Y"].tolist() == self._expected
        self._traffic.book(self, response.error, wrong=twice or not (response.error or right))


def pb_utils() -> ModuleType:
    module = ModuleType("triton_python_backend_utils")
    names = (Tensor, TritonError, InferenceResponse, MetricFamily, Logger)
    vars(module).update({each.__name__: each for each in names})
    vars(module).update(
        TritonModelException=TritonError,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
    )
    return module


def _model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model", MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
                self._board.count(*counts)
            except MemoryError:  # Of ours, not the front's: `_ask` takes care of that.
                pass
            nap()

    def _ask(self, replica: int, lead: Any) -> None:
        request = Request(self.asked, replica, self)
        self.asked += 1
        try:
            responses = lead.execute([request])
        except Exception as error:  # Triton answers it with this text then.
            Logger.log_error(f"execute raised {error!r}")
            responses = [InferenceResponse(error=TritonError(str(error), 0))]
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
    def __init__(self, board: Board) -> None:
        self._board = board
        self._traffic = Traffic(board)
        self._instances = [Instance(name) for name in ("lead_0", "lead_1", "shard_0", "shard_1")]

    def run(self) -> None:
        for order in self._board.orders():
            while True:
                try:
                    self._board.answer(**self._obey(order))
                    break
                except MemoryError:
                    nap()

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        if order["do"] == "load":
            return self._load(order)
        if order["do"] == "unload":
            return self._unload()
        return self._settle() if order["do"] == "settle" else {}

    def _load(self, order: dict[str, Any]) -> dict[str, Any]:
        try:
            module = _model()
        except Exception as error:  # Triton says this text.
            return {"error": str(error) or repr(error)}
        for instance in self._instances:
            instance.model = module.TritonPythonModel()
            args = {
                "model_config": json.dumps(order["config"]),
                "model_repository": order["repository"],
                "model_version": "1",
                "model_instance_name": instance.name,
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
            instance.do(partial(instance.model.initialize, args))
        error = self._together()
        if not error:
            self._traffic.leads = [each.model for each in self._instances[:2]]
        return {"error": error}

    def _settle(self) -> dict[str, Any]:
        """No new request until all are answered."""
        leads, self._traffic.leads = self._traffic.leads, []
        while self._traffic.in_flight:
            nap()
        self._traffic.leads = leads
        return {}

    def _unload(self) -> dict[str, Any]:
        self._settle()
        self._traffic.leads = []
        for instance in self._instances:
            instance.do(instance.model.finalize)
        return {"error": self._together()}

    def _together(self) -> str:
        while any(each.is_busy for each in self._instances):
            nap()
        return "; ".join(each.error for each in self._instances if each.error)


def _tell(*_: Any) -> None:
    """What the main thread does when a test wants to know more."""
    print(*Logger.lines, sep="\n", file=sys.stderr, flush=True)
    faulthandler.dump_traceback()


if __name__ == "__main__":
    sys.modules["triton_python_backend_utils"] = pb_utils()
    gc.freeze()
    signal.signal(signal.SIGUSR2, _tell)
    Stub(Board(Path(sys.argv[1]))).run()
    os._exit(0)
