"""Triton and its Python backend, as far as model.py sees them.

A Tensor keeps what it was made of. Its bytes are read when its response leaves the stub: at once
where a sender sends it, but for what `execute` returns only after it has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from tests.support.triton_stub import InferenceResponse, Tensor, TritonError, pb_utils

from .modules import here

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]


@dataclass
class Arrived:
    """What reached the client."""

    at: float
    outputs: Outputs | None
    error: TritonError | None


@dataclass(eq=False)
class InferenceRequest:
    inputs: Mapping[str, Array]
    microseconds: int = 0
    cancelled: bool = False
    answers: list[Arrived] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What would crash Triton or its stub."""

    def timeout(self) -> int:
        return self.microseconds

    def get_response_sender(self) -> ResponseSender:
        return ResponseSender(self)

    def arrive(self, response: InferenceResponse) -> None:
        """Serialises: only now are the bytes read."""
        outputs = None if response.error else response.outputs
        self.answers.append(Arrived(here.machine.now, outputs, response.error))


class ResponseSender:
    def __init__(self, request: InferenceRequest) -> None:
        self._request = request

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        here.machine.wobble()
        if self._request.answers:
            self._request.faults.append("a response after the last one")
        self._request.arrive(response)

    def is_cancelled(self) -> bool:
        here.machine.wobble()  # A round trip to the server.
        if self._request.answers:
            self._request.faults.append("asked whether it is cancelled after the last response")
        return self._request.cancelled


class Logger:
    """Keeps what a person would have to read."""

    errors: list[str]
    log_info = log_warn = log_verbose = staticmethod(lambda text: None)

    @staticmethod
    def log_error(text: str) -> None:
        Logger.errors.append(text)


Logger.errors = []


def _input(request: InferenceRequest, name: str) -> Tensor | None:
    return Tensor(name, request.inputs[name]) if name in request.inputs else None


UTILS = pb_utils(Logger=Logger, get_input_tensor_by_name=_input)


class Call:
    """Something that the stub's own thread does for Triton."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action
        self.began = here.machine.now
        self.error: Exception | None = None
        self.done = False


class Stub:
    """The process of one instance, and what Triton does with it, one call after the other."""

    def __init__(self, entry: ModuleType, name: str) -> None:
        self.process = here.machine.spawn(name)
        self.model: Any = None
        self.calls: list[Call] = []
        self._entry = entry
        self.process.run(self._run, "triton")

    def initialize(self, arguments: Mapping[str, str]) -> None:
        def load() -> None:
            model = self._entry.TritonPythonModel()
            model.initialize(arguments)
            self.model = model

        self.loading = self._post(load)

    def execute(self, requests: Sequence[InferenceRequest]) -> Call:
        return self._post(lambda: self._execute(requests))

    def finalize(self) -> Call:
        return self._post(lambda: self.model.finalize())

    def _execute(self, requests: Sequence[InferenceRequest]) -> None:
        responses = self.model.execute(list(requests)) or [None] * len(requests)
        for request, response in zip(requests, responses, strict=True):
            here.machine.wobble()  # The other threads and the ranks go on meanwhile.
            if response is not None:
                request.arrive(response)

    def _post(self, action: Callable[[], Any]) -> Call:
        self.calls.append(Call(action))
        return self.calls[-1]

    def _run(self) -> None:
        while True:
            here.machine.park(until=lambda: bool(self.calls))
            call = self.calls[0]
            try:
                call.action()
            except Exception as error:  # Triton would hear of it.
                call.error = error
            call.done = True
            self.calls.pop(0)
