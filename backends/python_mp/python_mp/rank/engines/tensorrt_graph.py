"""Runs a TensorRT plan: torch tensors in, torch tensors out, on a CUDA stream of its own.

Shapes seen for the second time are captured as a CUDA graph and replayed from then on: an odd batch
is not worth the capture.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tensorrt_plan import Plan, Shapes

CUDA_GRAPHS = 16
SHAPES_REMEMBERED = 256


@dataclass(frozen=True)
class Captured:
    """A CUDA graph and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class TensorRtGraph:
    """One rank's plan, ready to run. It must be gone before its communicator is.

    Args:
        communicator: from `tensorrt_plan.communicator`, where the plan holds collectives.
        cuda_graphs: how many shapes stay captured; 0 captures none.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        communicator: Any = None,
        cuda_graphs: int = CUDA_GRAPHS,
    ) -> None:
        self._plan, self._device, self._communicator = plan, device, communicator
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._contexts: dict[int, Any] = {}
        self._cuda_graphs = cuda_graphs
        self._seen: OrderedDict[Shapes, None] = OrderedDict()
        self._captured: OrderedDict[Shapes, Captured] = OrderedDict()

    def __call__(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, on the device, valid until the next call.

        Raises:
            RequestFailed: the plan was not built for these shapes, or failed.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            inputs = {
                name: given[name].to(self._device, self._plan.dtypes[name]).contiguous()
                for name in self._plan.inputs
            }
            outputs = self._run(inputs)
        current.wait_stream(self._stream)
        return outputs

    def _run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs.values())
        if captured := self._captured.get(shapes):
            self._captured.move_to_end(shapes)
            for name, tensor in inputs.items():
                captured.inputs[name].copy_(tensor)
            captured.graph.replay()
            return captured.outputs
        context = self._context(self._plan.profile(shapes))
        outputs = self._bind(context, inputs)
        self._execute(context)
        if self._cuda_graphs and shapes in self._seen:
            kept = Captured(self._capture(context), inputs, outputs)
            _keep(self._captured, shapes, kept, self._cuda_graphs)
        _keep(self._seen, shapes, None, SHAPES_REMEMBERED)
        return outputs

    def _capture(self, context: Any) -> torch.cuda.CUDAGraph:
        """Of a context that has just run: TensorRT needs one run after a change of shape.

        The watchdog of torch's NCCL group polls its events all the time, which would break a
        capture of the whole process.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._execute(context)
        return graph

    def _bind(self, context: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        check, dtypes = self._plan.check, self._plan.dtypes
        for name, tensor in inputs.items():
            check(context.set_input_shape(name, tuple(tensor.shape)))
        check(not context.infer_shapes())
        outputs = {
            name: torch.empty(
                tuple(context.get_tensor_shape(name)), dtype=dtypes[name], device=self._device
            )
            for name in self._plan.outputs
        }
        for name, tensor in (inputs | outputs).items():
            check(context.set_tensor_address(name, tensor.data_ptr()))
        return outputs

    def _execute(self, context: Any) -> None:
        self._plan.check(context.execute_async_v3(self._stream.cuda_stream))

    def _context(self, profile: int) -> Any:
        """One a profile, so that switching profiles does not invalidate what is captured."""
        if profile not in self._contexts:
            self._contexts[profile] = self._plan.context(
                profile, self._stream.cuda_stream, self._communicator
            )
        return self._contexts[profile]


def _keep(cache: OrderedDict[Shapes, Any], shapes: Shapes, value: Any, most: int) -> None:
    cache[shapes] = value
    cache.move_to_end(shapes)
    while len(cache) > most:
        cache.popitem(last=False)
