"""The few names of `triton_python_backend_utils` that a Python model uses, without Triton."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parents[2] / "model_repository"


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError(Exception):
    INVALID_ARG = 3

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class InferenceRequest:
    def __init__(self, **arrays: np.ndarray) -> None:
        self._tensors = [Tensor(name, array) for name, array in arrays.items()]

    def inputs(self) -> list[Tensor]:
        return self._tensors


class InferenceResponse:
    def __init__(self, tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in tensors}
        self.error = error


def _input(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def load_model(name: str, monkeypatch: Any) -> ModuleType:
    """The model's model.py, beside its config.pbtxt or in 1/, imported with this stand-in."""
    utils = ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.TritonError = Tensor, TritonError  # type: ignore[attr-defined]
    utils.InferenceResponse = InferenceResponse  # type: ignore[attr-defined]
    utils.get_input_tensor_by_name = _input  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    built, by_hand = REPOSITORY / name / "model.py", REPOSITORY / name / "1" / "model.py"
    path = built if built.exists() else by_hand
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
