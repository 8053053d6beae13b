"""The way back to Triton, for the requests of one call of `execute`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import triton_python_backend_utils as pb_utils

from ..model.config import ModelConfig
from ..model.errors import PythonMpError, for_clients, in_parts
from ..model.request import Array

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def input_tensors(request: Any, config: ModelConfig) -> dict[str, Array]:
    """Those that the request has, by name."""
    return {
        spec.name: tensor.as_numpy()
        for spec in config.inputs
        if (tensor := pb_utils.get_input_tensor_by_name(request, spec.name)) is not None
    }


def response(outputs: Mapping[str, Array]) -> Any:
    tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]
    return pb_utils.InferenceResponse(tensors)


def failure(error: PythonMpError) -> Any:
    return _failed(error.status, for_clients(error))


def failure_in_parts(error: PythonMpError) -> Any:
    return _failed(error.status, in_parts(error.status, for_clients(error)))


def _failed(status: str, text: str) -> Any:
    code = getattr(pb_utils.TritonError, status)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))


class Window:
    """Collects the answers that come while `execute` waits. One return carries them all to Triton,
    where a response sender takes four thread hops for each."""

    def __init__(self, requests: Sequence[Any]) -> None:
        self.answers = [TritonAnswer(self, request) for request in requests]
        self._missing = len(requests)
        self._lock = Lock()

    def collect(self, answer: TritonAnswer, response: Any) -> None:
        with self._lock:
            if answer.sender is None:
                answer.response = response
                self._missing -= 1
                return
        with answer.lock:
            answer.sender.send(response, flags=FINAL)
            answer.sent = True

    def is_complete(self) -> bool:
        return not self._missing

    def close(self) -> list[Any]:
        """The responses so far, None for those that will come through their sender."""
        with self._lock:
            for answer in self.answers:
                if answer.response is None:
                    answer.sender = answer.request.get_response_sender()
        return [answer.response for answer in self.answers]


class TritonAnswer:
    """The way back for one request; holding the request keeps its tensors alive."""

    def __init__(self, window: Window, request: Any) -> None:
        self.request = request
        self.response: Any = None
        self.sender: Any = None
        self.sent = False
        self.lock = Lock()
        self._window = window

    @property
    def keeps(self) -> bool:
        """A Tensor is a view. What `execute` returns is read after that, a sender reads at once."""
        return self.sender is None

    def send(self, outputs: Mapping[str, Array]) -> None:
        self._window.collect(self, response(outputs))

    def fail(self, error: PythonMpError) -> None:
        self._window.collect(self, failure(error))

    def is_cancelled(self) -> bool:
        # After the last response Triton's side of the sender is gone: asking it then is a crash.
        with self.lock:
            return self.sender is not None and not self.sent and bool(self.sender.is_cancelled())
