"""A TensorRT plan file, loaded: its tensors, its profiles, contexts to run it in."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ...model.errors import EngineFailed, LoadError, RequestFailed
from ...sharding.packed import BINS
from .tensorrt_api import TORCH_DTYPES, create, error_recorder, library, messages

Shapes = tuple[tuple[int, ...], ...]
"""Of a batch's inputs, in the order of `Plan.inputs`."""


class Plan:
    """What a plan file holds.

    Args:
        path: the file.
        weights: the ONNX graph it was made of; needed where its weights were stripped.
        host_code: whether it may hold code for the CPU, as version-compatible plans do.

    Raises:
        LoadError: it does not fit this machine; the message says how to build it again.
    """

    def __init__(self, path: Path, *, weights: Path | None = None, host_code: bool = False) -> None:
        self._trt = library()
        self._path = path
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._recorder = error_recorder(self._trt)
        self._runtime = create(self._trt.Runtime, self._logger)
        self._runtime.error_recorder = self._recorder
        self._runtime.engine_host_code_allowed = host_code
        self._engine = self._deserialize()
        self._refit(weights)
        self.inputs, self.outputs = self._names()
        self.dtypes = {name: self._dtype(name) for name in (*self.inputs, *self.outputs)}
        self.bounds = [
            [self._bounds(name, profile) for name in self.inputs]
            for profile in range(self._engine.num_optimization_profiles)
        ]
        """Smallest and largest shape of each input, profile by profile."""

    @property
    def largest_batch(self) -> int:
        """Rows of the largest batch that some profile holds."""
        rows = [n for n, name in enumerate(self.inputs) if name not in BINS]
        return min(max(profile[n][1][0] for profile in self.bounds) for n in rows)

    def profile(self, shapes: Shapes) -> int:
        """The first profile that holds the shapes.

        Raises:
            RequestFailed: there is none; the message names the shapes.
        """
        for index, bounds in enumerate(self.bounds):
            if all(map(_within, shapes, bounds)):
                return index
        given = ", ".join(f"{n} {list(s)}" for n, s in zip(self.inputs, shapes, strict=True))
        raise RequestFailed(
            f"{self._path.name} was not built for a batch of {given}: widen `shapes` in recipe.toml"
            f" and build it again with {self._rebuild}"
        )

    def context(self, profile: int, stream: int, communicator: Any = None) -> Any:
        """A new execution context. With a communicator, every rank of it must make one now.

        Args:
            stream: handle of the CUDA stream it will run on.
            communicator: from `communicator`, where the plan holds collectives.
        """
        context = self._engine.create_execution_context()
        self._must(context is not None, "has no memory to run in")
        self._must(context.set_optimization_profile_async(profile, stream), "lacks a profile")
        if communicator is not None:
            self._must(context.set_communicator(communicator), "cannot join the other ranks")
        return context

    def check(self, succeeded: bool) -> None:
        """Raises EngineFailed with what TensorRT reported, unless a call succeeded."""
        if not succeeded:
            raise EngineFailed(f"{self._path.name} failed: {messages(self._recorder)}")

    def _deserialize(self) -> Any:
        if not self._path.exists():
            raise LoadError(f"{self._path} is missing: build it with {self._rebuild}")
        with (
            self._path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            engine = self._runtime.deserialize_cuda_engine(content)
        self._must(engine is not None, f"cannot be loaded by TensorRT {self._trt.__version__}")
        return engine

    def _refit(self, weights: Path | None) -> None:
        """Gives a plan that was stripped the weights of its ONNX graph."""
        if self._engine.get_engine_stat(self._trt.EngineStat.STRIPPED_WEIGHTS_SIZE) <= 0:
            return
        found = weights is not None and weights.exists()
        self._must(found, f"was built without weights, and {weights} is missing")
        refitter = self._trt.Refitter(self._engine, self._logger)
        refitter.error_recorder = self._recorder
        parser = self._trt.OnnxParserRefitter(refitter, self._logger)
        taken = parser.refit_from_file(str(weights)) and refitter.refit_cuda_engine()
        self._must(taken, f"does not take the weights of {weights}")

    def _names(self) -> tuple[list[str], list[str]]:
        engine, is_input = self._engine, self._trt.TensorIOMode.INPUT
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == is_input]
        for name in names:
            on_device = not engine.is_shape_inference_io(name)
            self._must(on_device, f"wants '{name}' in CPU memory, which is not supported")
        return inputs, [name for name in names if name not in inputs]

    def _dtype(self, name: str) -> torch.dtype:
        kind = self._engine.get_tensor_dtype(name).name
        self._must(kind in TORCH_DTYPES, f"has '{name}' of type {kind}, which torch cannot hold")
        return TORCH_DTYPES[kind]

    def _bounds(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(smallest), tuple(largest)

    def _must(self, holds: bool, problem: str) -> None:
        if not holds:
            raise LoadError(
                f"{self._path} {problem} ({messages(self._recorder)}): build it again on this"
                f" machine with {self._rebuild}"
            )

    @property
    def _rebuild(self) -> str:
        return f"python -m build_scripts.build {self._path.resolve().parent.parent.name}"


def communicator(group: dist.ProcessGroup, device: torch.device) -> Any:
    """A capsule of the group's `ncclComm_t`, the form in which TensorRT takes it."""
    backend: Any = group._get_backend(device)
    backend.eager_connect_single_device(device)  # Otherwise torch makes it at the first collective.
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(backend._comm_ptr(), None, None)


def _within(shape: Sequence[int], bounds: tuple[Sequence[int], Sequence[int]]) -> bool:
    smallest, largest = bounds
    return len(shape) == len(smallest) and all(
        low <= size <= high for size, low, high in zip(shape, smallest, largest, strict=True)
    )
