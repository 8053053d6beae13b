"""The few names of `triton_python_backend_utils` that a Python model uses, without Triton."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
FINAL = 1
Outputs = dict[str, np.ndarray]


class Tensor:
    """Keeps the array as it is, a view mostly, as Triton's does."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError(Exception):
    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = 1, 3, 4, 7

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class InferenceResponse:
    def __init__(self, tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors = tensors
        self.error = error

    @property
    def outputs(self) -> Outputs:
        """What the tensors hold by now: Triton reads them after `execute` has returned."""
        return {tensor.name(): tensor.as_numpy().copy() for tensor in self._tensors}


class ResponseSender:
    """Reads a response before `send` returns, as Triton's does; takes one."""

    def __init__(self, answer: Future[Outputs]) -> None:
        self._answer = answer

    def send(self, response: InferenceResponse, flags: int) -> None:
        assert flags == FINAL
        if response.error:
            self._answer.set_exception(response.error)
        else:
            self._answer.set_result(response.outputs)

    def is_cancelled(self) -> bool:
        assert not self._answer.done(), "Triton's side of the sender is gone: a crash"
        return False


class InferenceRequest:
    def __init__(self, **arrays: np.ndarray) -> None:
        self._tensors = [Tensor(name, array) for name, array in arrays.items()]
        self.answer: Future[Outputs] = Future()

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def parameters(self) -> str:
        return ""

    def timeout(self) -> int:
        return 0

    def get_response_sender(self) -> ResponseSender:
        return ResponseSender(self.answer)


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = range(3)

    def __init__(self, **_: Any) -> None:
        pass

    def Metric(self, labels: Mapping[str, str]) -> "MetricFamily":  # noqa: N802
        return self

    def set(self, value: float) -> None:
        pass

    def increment(self, value: float) -> None:
        pass


class Logger:
    @staticmethod
    def log_info(line: str) -> None:
        pass

    log_warn = log_error = log_info


def _input(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def arguments(config: str, repository: str | Path, instance: str) -> dict[str, str]:
    """Of `initialize`."""
    return {
        "model_config": config,
        "model_name": Path(repository).name,
        "model_repository": str(repository),
        "model_version": "1",
        "model_instance_name": instance,
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


def execute(model: Any, requests: Sequence[InferenceRequest]) -> list[Future[Outputs]]:
    """Each request's answer. What `execute` returns is read only now, one after the other."""
    for request, response in zip(requests, model.execute(requests), strict=True):
        if response is not None:
            ResponseSender(request.answer).send(response, FINAL)
    return [request.answer for request in requests]


def load_model(name: str, monkeypatch: Any) -> ModuleType:
    """The model.py of a model that no build makes, imported with this stand-in."""
    return load(REPOSITORY / name / "1" / "model.py", monkeypatch)


def load_step(name: str, monkeypatch: Any) -> ModuleType:
    """One of python_mp.steps."""
    _pretend(monkeypatch)
    return importlib.import_module(f"python_mp.steps.{name}")


def load_triton(name: str, monkeypatch: Any) -> ModuleType:
    """One of python_mp.triton."""
    _pretend(monkeypatch)
    return importlib.import_module(f"python_mp.triton.{name}")


def load(path: Path, monkeypatch: Any) -> ModuleType:
    """Any model.py."""
    _pretend(monkeypatch)
    return run(path)


def _pretend(monkeypatch: Any) -> None:
    utils = pb_utils()
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    _forget()


def pb_utils(**others: Any) -> ModuleType:
    """The module, with others in the places of these stand-ins."""
    utils = ModuleType("triton_python_backend_utils")
    names = (Tensor, TritonError, InferenceResponse, MetricFamily, Logger)
    vars(utils).update({each.__name__: each for each in names})
    vars(utils).update(
        TritonModelException=RuntimeError,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        get_input_tensor_by_name=_input,
    )
    vars(utils).update(others)
    return utils


def run(path: Path) -> ModuleType:
    """What importing the file makes; what of the backend knows Triton is imported anew with it."""
    _forget()
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _forget() -> None:
    for name in list(sys.modules):
        if name.startswith(("python_mp.triton", "python_mp.steps")):
            del sys.modules[name]
