"""All ranks' ONNX graphs in one process, segment by segment: what they compute, without ranks.

It is how graphs are calibrated and checked where no group of ranks runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from onnx import NodeProto
from onnxruntime import InferenceSession
from rich.progress import Progress
from torch import Tensor

from build_scripts import onnx_file, samples
from build_scripts.job import Job
from python_mp.model.request import Array
from python_mp.rank.engines.onnx_graph import cut
from python_mp.rank.engines.onnx_session import session
from python_mp.sharding.packed import HIDDEN_OUT, Packed

Feed = dict[str, Array]
CPU = torch.device("cpu")
BATCH = 8


@dataclass(frozen=True)
class Step:
    """One segment of one rank's graph, and what it was given for one batch."""

    rank: int
    index: int
    feed: Feed


class Lockstep:
    """The graphs of a replica, `files[stage * tensor_parallel_size + tensor rank]`."""

    def __init__(self, files: Sequence[Path], tensor_parallel_size: int) -> None:
        self._folder = files[0].parent
        self.models = [onnx_file.graph(file) for file in files]
        self._width = tensor_parallel_size
        self.segments = [cut(model) for model in self.models]

    @cached_property
    def _sessions(self) -> list[list[InferenceSession]]:
        threads = torch.get_num_threads()
        return [[session(each, self._folder, threads) for each in graph] for graph in self.segments]

    def forward(self, inputs: Mapping[str, Array]) -> tuple[Feed, list[Step]]:
        """Computes one packed batch.

        Returns:
            The model's outputs, and every step that led to them.
        """
        batch, hidden, steps = Packed(inputs, CPU), None, list[Step]()
        outputs: Feed = {}
        for first in range(0, len(self.models), self._width):
            outputs = self._stage(first, batch, hidden, steps)
            if HIDDEN_OUT in outputs:
                hidden = torch.from_numpy(outputs[HIDDEN_OUT])
        return outputs, steps

    def _stage(self, first: int, batch: Packed, hidden: Tensor | None, steps: list[Step]) -> Feed:
        """The outputs of the stage's first rank; all its ranks have the same."""
        ranks = range(first, first + self._width)
        values = {rank: self._given(rank, batch, hidden) for rank in ranks}
        for index in range(len(self.segments[first])):
            steps += [self._run(rank, index, values[rank]) for rank in ranks]
            self._meet([(self.segments[rank][index].collective, values[rank]) for rank in ranks])
        return {value.name: values[first][value.name] for value in self.models[first].graph.output}

    def _given(self, rank: int, batch: Packed, hidden: Tensor | None) -> Feed:
        names = [value.name for value in self.models[rank].graph.input]
        return {name: t.numpy() for name, t in batch.graph_inputs(names, hidden).items()}

    def _run(self, rank: int, index: int, known: Feed) -> Step:
        segment = self.segments[rank][index]
        feed = {name: known[name] for name in segment.inputs}
        results = self._sessions[rank][index].run(segment.outputs, feed)
        known.update(zip(segment.outputs, results, strict=True))
        return Step(rank, index, feed)

    @staticmethod
    def _meet(ranks: Sequence[tuple[NodeProto | None, Feed]]) -> None:
        """All-reduce, where the segment ends in one."""
        met = [(node, known) for node, known in ranks if node]
        if met:
            total = np.sum([known[node.input[0]] for node, known in met], axis=0)
            for node, known in met:
                known[node.output[0]] = total


def calibration(job: Job, ranks: Lockstep, progress: Progress) -> Iterator[list[Step]]:
    """The steps of each batch of the job's calibration samples."""
    batches = samples.batches(job.config, samples.calibration(job), BATCH)
    for batch in progress.track(batches, description=f"{job.name}: calibrate"):
        yield ranks.forward(batch)[1]
