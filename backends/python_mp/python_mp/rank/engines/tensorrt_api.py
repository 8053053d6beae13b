"""TensorRT's Python API as ranks and builds both use it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from ...model.errors import LoadError

VERSION = 11
TORCH_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}
"""By `DataType`; `tensorrt.nptype` has no answer for BF16 and FP8."""


def library() -> Any:
    """The module `tensorrt`.

    Raises:
        LoadError: it is not installed, or too old.
    """
    try:
        trt = import_module("tensorrt")
    except ImportError as error:
        raise LoadError(
            f"Engine tensorrt needs TensorRT {VERSION}, which is not installed here ({error}): use"
            " NVIDIA's container, or install the extra 'tensorrt'."
        ) from None
    if int(trt.__version__.partition(".")[0]) < VERSION:
        raise LoadError(f"Engine tensorrt needs TensorRT {VERSION}; here is {trt.__version__}.")
    return trt


def create(kind: Any, logger: Any) -> Any:
    """A `Builder` or a `Runtime`.

    Raises:
        LoadError: TensorRT cannot make one, which is so where there is no GPU.
    """
    try:
        return kind(logger)
    except TypeError as error:  # What pybind11 makes of a null pointer.
        raise LoadError(f"TensorRT finds no GPU or driver that it can use here ({error})") from None


def error_recorder(trt: Any) -> Any:
    """An `IErrorRecorder` that keeps everything; whoever is given it does not keep it alive."""

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self._errors: list[tuple[Any, str]] = []

        def num_errors(self) -> int:
            return len(self._errors)

        def get_error_code(self, index: int) -> Any:
            return self._errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self._errors[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self._errors.clear()

        def report_error(self, code: Any, description: str) -> bool:
            self._errors.append((code, description))
            return True

    return Recorder()


def messages(recorder: Any) -> str:
    """What was recorded, each message once."""
    found = [recorder.get_error_desc(index) for index in range(recorder.num_errors())]
    return "; ".join(dict.fromkeys(found)) or "TensorRT gave no reason"
