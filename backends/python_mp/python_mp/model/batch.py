"""The packed batch that the ranks compute.

three requests, 2 + 3 + 1 tokens           rows      a a b b b c
packed end to end, nothing padded          cu_seqlens 0 2 5 6
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from .config import ModelConfig, TensorSpec
from .errors import RequestFailed
from .once import once
from .ragged_groups import CU_SEQLENS as CU_SEQLENS
from .request import Array, Outputs, Request, check_nbytes


@dataclass(frozen=True)
class Batch:
    """Requests that are computed together, in this order."""

    id: int
    requests: tuple[Request, ...]

    @once
    def lengths(self) -> list[list[int]]:
        """Rows of each sequence, for each group of ragged tensors."""
        groups = range(len(self.requests[0].lengths))
        return [[n for request in self.requests for n in request.lengths[g]] for g in groups]

    @property
    def sequences(self) -> int:
        return len(self.lengths[0])

    @once
    def tokens(self) -> int:
        """Rows of all groups."""
        return sum(request.tokens for request in self.requests)

    @property
    def begun(self) -> tuple[Request, ...]:
        """Requests of which it is the first batch."""
        return self.requests

    @property
    def ended(self) -> tuple[Request, ...]:
        """Requests that are through when it is."""
        return self.requests

    def owners(self, sequences: Iterable[int]) -> list[Request]:
        """Of these sequences of the batch, in order."""
        ends = list(accumulate(request.sequences for request in self.requests))
        found = {bisect_right(ends, each) for each in sequences}
        return [request for at, request in enumerate(self.requests) if at in found]

    @property
    def tokens_saved(self) -> int:
        """Rows that padding every sequence to the longest would have added."""
        return sum(max(group) * len(group) - sum(group) for group in self.lengths)

    def fault(self, outputs: Outputs) -> str:
        """What of these no rank in its senses would say; empty if nothing."""
        return ""

    def pack(self, config: ModelConfig) -> dict[str, list[Array]]:
        """Every tensor as the list of parts that stand end to end in it; with ragged inputs also
        each group's `cu_seqlens`, int32 [sequences + 1]."""
        parts: dict[str, list[Array]] = {}
        if config.has_ragged_input:
            for group, lengths in zip(config.groups, self.lengths, strict=True):
                ends = accumulate(lengths, initial=0)
                parts[group.cu_seqlens] = [np.fromiter(ends, np.int32, self.sequences + 1)]
        for spec in config.inputs:
            if spec.name in self.requests[0].inputs and spec.name in config.batch_inputs:
                parts[spec.name] = [
                    rows for request in self.requests for rows in _rows(request, spec)
                ]
        return parts

    def split(
        self, outputs: Mapping[str, Array], specs: Sequence[TensorSpec], most: float = math.inf
    ) -> list[Outputs]:
        """Each request's part of the packed outputs, with its batch dimension back in place.

        Args:
            most: bytes that one output of one request may take.

        Raises:
            RequestFailed: the engine made others than config.pbtxt describes, not as many rows
                as it was given, or too much.
        """
        for spec in specs:
            rows = sum(self.lengths[spec.group]) if spec.ragged else self.sequences
            check_output(outputs, spec, rows)
        answers: list[Outputs] = [{} for _ in self.requests]
        for spec in specs:
            start = 0
            for request, answer in zip(self.requests, answers, strict=True):
                lengths = request.lengths[spec.group]
                stop = start + (sum(lengths) if spec.ragged else request.sequences)
                found = outputs[spec.name][start:stop]
                answer[spec.name] = _unpack(found, lengths, most) if spec.ragged else found
                start = stop
        return answers


def check_output(outputs: Mapping[str, Array], spec: TensorSpec, rows: int) -> None:
    """Raises RequestFailed unless the packed outputs hold this one, with so many rows."""
    shape = outputs[spec.name].shape if spec.name in outputs else ()
    if shape[:1] != (rows,):
        raise RequestFailed(f"the engine's output '{spec.name}' has not {rows} rows")
    if len(shape) != 1 + len(spec.row):
        raise RequestFailed(
            f"the engine's output '{spec.name}' has rows of shape {list(shape[1:])}; in"
            f" config.pbtxt they have {list(spec.row)}"
        )


def _rows(request: Request, spec: TensorSpec) -> list[Array]:
    array = request.inputs[spec.name]
    if not spec.ragged:
        return [array]
    lengths = request.lengths[spec.group]
    if len(lengths) == 1:
        return [array[0, : lengths[0]]]
    return [array[_real(lengths, array.shape[1])]]


def _unpack(rows: Array, lengths: Sequence[int], most: float) -> Array:
    """[tokens, ...] -> [b, longest, ...], zeros behind the shorter sequences."""
    if len(lengths) == 1:
        return rows[None]
    shape = (len(lengths), max(lengths), *rows.shape[1:])
    check_nbytes(math.prod(shape) * rows.itemsize, most)
    padded = np.zeros(shape, rows.dtype)
    padded[_real(lengths, shape[1])] = rows
    return padded


def _real(lengths: Sequence[int], width: int) -> Array:
    """Bool [sequences, width]: where a row is."""
    found: Array = np.arange(width) < np.array(lengths)[:, None]
    return found
