"""ONNX graphs, one a rank, run by ONNX Runtime; the collectives between their segments are ours.

A node that called back into Python for each collective was measured three to four times slower.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import OrtValue
from torch import Tensor

from ...model.errors import LoadError
from ...model.rank_spec import RankSpec
from ...sharding.packed import HIDDEN_OUT, Packed
from ...sharding.shard import Shard
from ...sharding.source import Source
from ..collectives import Communicator
from ..stage import Compute, Stage
from .onnx_graph import cut
from .onnx_session import session


def load(spec: RankSpec) -> Stage:
    """Raises LoadError when the graph is missing or ONNX Runtime refuses it."""
    return Stage.load(spec, _graph)


def _graph(shard: Shard, _: Source) -> Compute:
    return OnnxGraph(shard.folder / f"rank{shard.world_rank}.onnx", shard.communicator)


class OnnxGraph:
    """One rank's stage as ONNX Runtime sessions, a collective after each but the last."""

    def __init__(self, path: Path, communicator: Communicator) -> None:
        if not path.exists():
            raise LoadError(f"{path} is missing: build the model again")
        try:
            model, threads = onnx.load(path, load_external_data=False), torch.get_num_threads()
            self._segments = [(each, session(each, path.parent, threads)) for each in cut(model)]
        except Exception as error:
            raise LoadError(f"{path} cannot be loaded: {error}") from error
        self._communicator = communicator
        self._inputs = [value.name for value in model.graph.input]
        self._outputs = [value.name for value in model.graph.output]

    def __call__(self, batch: Packed, hidden: Tensor | None) -> Tensor | dict[str, Tensor]:
        outputs = batch.through(self._run, self._inputs, hidden)
        return outputs.get(HIDDEN_OUT, outputs)

    def _run(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = {name: _value(tensor) for name, tensor in given.items()}
        for segment, run in self._segments:
            feed = {name: values[name] for name in segment.inputs}
            results = run.run_with_ort_values(segment.outputs, feed)
            values.update(zip(segment.outputs, results, strict=True))
            if segment.collective:
                self._reduce(values[segment.collective.input[0]])
                values[segment.collective.output[0]] = values[segment.collective.input[0]]
        return {name: _tensor(values[name]) for name in self._outputs}

    def _reduce(self, value: OrtValue) -> None:
        self._communicator.all_reduce(_tensor(value))


def _value(tensor: Tensor) -> OrtValue:
    return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor.numpy()))


def _tensor(value: OrtValue) -> Tensor:
    """A view of the value's memory."""
    return torch.from_numpy(value.numpy())
