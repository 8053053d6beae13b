"""A request that is larger than a batch: cut between its sequences, answered as one.

    request, 9 sequences --cut--> parts of 4 + 4 + 1, each a request --Whole--> one answer

A part is queued, suspected, replayed and handed over like any other request. The first that fails
answers for all; what still waits of the others is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from threading import Lock

import numpy as np

from ...model.config import ModelConfig, Parameters
from ...model.errors import InvalidInput, PythonMpError, RequestFailed
from ...model.request import (
    Array,
    Outputs,
    Request,
    answer_nbytes,
    bounded_tokens,
    check_nbytes,
    output_nbytes,
)
from ...model.size import Size


def cut(request: Request, config: ModelConfig) -> list[Request]:
    """The request, or parts of it that fit into a batch.

    Raises:
        InvalidInput: one sequence alone is too large, or all of it for the queue, or its answer.
    """
    bounds = config.parameters
    if request.nbytes > bounds.most_nbytes:
        raise InvalidInput(
            f"the request has {request.nbytes} bytes; max_queue_bytes is {bounds.max_queue_bytes}"
        )
    try:
        check_nbytes(answer_nbytes(request.lengths, config), bounds.most_nbytes)
    except RequestFailed as error:
        raise InvalidInput(str(error)) from None
    if request.size.fits(bounds):
        return [request]
    whole = Whole(request, config)
    starts = list(_starts(_sizes(request, config), bounds))
    for start, stop in pairwise([*starts, request.sequences]):
        whole.add(start, stop)
    return whole.parts


def _sizes(request: Request, config: ModelConfig) -> list[Size]:
    """Of each sequence."""
    nbytes = -(-request.nbytes // request.sequences)
    alone = [[[n] for n in each] for each in zip(*request.lengths, strict=True)]
    return [Size(bounded_tokens(n), nbytes, output_nbytes(n, config)) for n in alone]


def _starts(sizes: Sequence[Size], bounds: Parameters) -> Iterator[int]:
    total = Size(bounds.max_batch_tokens, 0, 0)
    for index, size in enumerate(sizes):
        if not size.fits(bounds):
            raise InvalidInput(f"sequence {index} of the request {size.excess(bounds)}")
        total = total.plus(size)
        if not total.fits(bounds):
            yield index
            total = size


class Whole:
    """What the client sent, and the answers of its parts so far."""

    def __init__(self, request: Request, config: ModelConfig) -> None:
        self.parts: list[Request] = []
        self.request = request
        self._config = config
        self._outputs: dict[int, Outputs] = {}
        self._nbytes = 0
        self._most = config.parameters.most_nbytes
        self._lock = Lock()

    def add(self, start: int, stop: int) -> None:
        """A part with these of the sequences."""
        lengths = [group[start:stop] for group in self.request.lengths]
        part = replace(
            self.request,
            inputs={name: array[start:stop] for name, array in self.request.inputs.items()},
            lengths=lengths,
            answer=PartAnswer(self, len(self.parts)),
            output_nbytes=output_nbytes(lengths, self._config),
            continues=bool(self.parts),
        )
        self.parts.append(part)

    def send(self, number: int, outputs: Outputs) -> None:
        with self._lock:
            if self.request.answered:
                return
            self._outputs[number] = outputs
            self._nbytes += sum(array.nbytes for array in outputs.values())
            is_complete = len(self._outputs) == len(self.parts)
        try:
            check_nbytes(self._nbytes, self._most)
            if is_complete:
                self.request.deliver(self.request.send, self._joined())
        except Exception as error:
            why = error if isinstance(error, RequestFailed) else RequestFailed("no memory is left")
            self.fail(why)

    def fail(self, error: PythonMpError) -> None:
        for part in self.parts:
            part.answered = True
        self.request.deliver(self.request.answer.fail, error)

    def _joined(self) -> Outputs:
        longest = [max(group) for group in self.request.lengths]
        return {
            spec.name: _end_to_end(
                spec.name,
                [self._outputs[number][spec.name] for number in range(len(self.parts))],
                longest[spec.group] if spec.ragged else None,
                self._most,
            )
            for spec in self._config.outputs
        }


class PartAnswer:
    """The way back for one part, whose outputs are kept until the last one is there."""

    keeps = True

    def __init__(self, whole: Whole, number: int) -> None:
        self._whole = whole
        self._number = number

    def send(self, outputs: Mapping[str, Array]) -> None:
        self._whole.send(self._number, dict(outputs))

    def fail(self, error: PythonMpError) -> None:
        self._whole.fail(error)

    def is_cancelled(self) -> bool:
        return self._whole.request.is_cancelled()


def _end_to_end(name: str, parts: Sequence[Array], longest: int | None, most: int) -> Array:
    """[b, ...] each; with `longest`, [b, rows, ...] with zeros behind the shorter ones."""
    shapes = {part.shape[1 if longest is None else 2 :] for part in parts}
    if len(shapes) > 1:
        raise RequestFailed(
            f"output '{name}' has another shape in each part of the request, which is larger than"
            " a batch: send fewer sequences at a time"
        )
    if longest is None:
        return np.concatenate(parts)
    shape = (sum(map(len, parts)), longest, *shapes.pop())
    check_nbytes(math.prod(shape) * parts[0].itemsize, most)
    joined = np.zeros(shape, parts[0].dtype)
    start = 0
    for part in parts:
        joined[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return joined
