"""A request as it came, and the way back to its client."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .config import ModelConfig
from .errors import InvalidInput, PythonMpError, RequestFailed
from .once import once
from .size import Size

log = logging.getLogger(__name__)

_ANSWERING = Lock()

Array = npt.NDArray[Any]
Outputs = dict[str, Array]
Lengths = Sequence[Sequence[int]]
Signature = tuple[tuple[str, tuple[int, ...]], ...]
"""Inputs present and the shapes of their rows; only requests with equal ones share a batch."""


class Answer(Protocol):
    """The way back to one client. Exactly one of `send` and `fail` is called, once."""

    @property
    def keeps(self) -> bool:
        """Whether `send` only keeps the arrays, to be read later; once False it stays so."""

    def send(self, outputs: Mapping[str, Array]) -> None: ...

    def fail(self, error: PythonMpError) -> None: ...

    def is_cancelled(self) -> bool:
        """Whether nobody waits for it any more. It may take a round trip to the server."""


@dataclass(eq=False)
class Request:
    """One Triton request: `inputs[name]` is [b, ...] as the client sent it.

    `lengths` has, for each group of ragged tensors, the packed rows of each of its b sequences (1
    where nothing is ragged).
    `suspicion` grows with every group that died with this request in hand; `alone` keeps it out of
    others' batches, so that it can only hurt itself; `company` is the most requests that its batch
    may have. Past `deadline` it need not be computed any more. A `guest` came from another replica
    and stays with this one; `strays` are the peers that were lost with it, or to which it could not
    be sent. `output_nbytes` is the size of its outputs, as far as config.pbtxt says it. A part that
    `continues` a larger request belongs to one that the queue has taken already. `asked` is when it
    was last asked for whether its client has gone.
    """

    inputs: Mapping[str, Array]
    lengths: Lengths
    signature: Signature
    answer: Answer
    arrived: float = field(default_factory=time.perf_counter)
    deadline: float = math.inf
    suspicion: float = 0.0
    alone: bool = False
    guest: bool = False
    strays: int = 0
    answered: bool = False
    output_nbytes: int = 0
    company: float = math.inf
    continues: bool = False
    asked: float = 0.0

    def described(self) -> tuple[Mapping[str, Array], dict[str, Any]]:
        """For a peer that is to compute it: its tensors, and what else JSON can have."""
        return self.inputs, {}

    def is_cancelled(self) -> bool:
        self.asked = time.perf_counter()
        return not self.answered and self.answer.is_cancelled()

    def deliver(self, send: Callable[[Any], None], what: Any) -> None:
        """Answers, once, whoever else tries; one client's trouble is not the others'."""
        with _ANSWERING:
            if self.answered:
                return
            self.answered = True
        try:
            send(what)
        except Exception:
            log.exception("an answer could not be sent")
            with suppress(Exception):  # Mostly the client has gone, or this was the refusal itself.
                self.answer.fail(RequestFailed("the answer could not be sent"))

    def send(self, outputs: Mapping[str, Array]) -> None:
        """To `deliver`: what lies in a slot, which the next batches write over, is copied for an
        answer that is read later."""
        if self.answer.keeps:
            outputs = {n: a if a.flags.owndata else a.copy() for n, a in outputs.items()}
        self.answer.send(outputs)

    @property
    def sequences(self) -> int:
        return len(self.lengths[0])

    @once
    def tokens(self) -> int:
        """Rows of all groups."""
        return sum(map(sum, self.lengths))

    @once
    def nbytes(self) -> int:
        nbytes = 0
        for array in self.inputs.values():  # Faster than a generator, and done for each request.
            nbytes += array.nbytes
        return nbytes

    @once
    def size(self) -> Size:
        return Size(bounded_tokens(self.lengths), self.nbytes, self.output_nbytes)

    @once
    def content(self) -> bytes:
        """A hash of all its inputs."""
        digest = hashlib.blake2b(digest_size=16)
        for name, array in sorted(self.inputs.items()):
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.digest()


def read_request(inputs: Mapping[str, Array], config: ModelConfig, answer: Answer) -> Request:
    """Checks what Triton did not: which rows are real, and that ragged inputs agree on it.

    Raises:
        InvalidInput: naming the input and the numbers.
    """
    signature, sequences = [], {}
    for spec in config.inputs:
        if spec.name not in inputs:
            continue
        shape = inputs[spec.name].shape
        # Triton drops the batch dimension where a request says that it is 0.
        if len(shape) != 1 + len(spec.dims):
            raise InvalidInput(
                f"'{spec.name}' has shape {list(shape)}, which lacks the batch dimension"
            )
        signature.append((spec.name, shape[1 + spec.ragged :]))
        sequences[spec.name] = shape[0]
    count = min(sequences.values(), default=0)
    if count < 1:
        raise InvalidInput("the batch is empty")
    if count != max(sequences.values()):
        raise InvalidInput(f"inputs need the same number of sequences; got {sequences}")
    lengths = [_lengths(inputs, config, group, count) for group in range(len(config.groups))]
    now = time.perf_counter()
    return Request(
        inputs,
        lengths,
        tuple(signature),
        answer,
        arrived=now,
        deadline=now + config.queue_seconds,
        output_nbytes=output_nbytes(lengths, config),
    )


def bounded_tokens(lengths: Lengths) -> int:
    """What `max_batch_tokens` bounds: rows, where an empty sequence counts as one of one row."""
    tokens = 0
    for group in lengths:
        tokens += sum(group) + group.count(0)
    return tokens


def output_nbytes(lengths: Lengths, config: ModelConfig) -> int:
    """Of sequences of these lengths; where the size of a row is free, at least."""
    nbytes = 0
    for spec in config.outputs:
        rows = sum(lengths[spec.group]) if spec.ragged else len(lengths[0])
        nbytes += spec.row_nbytes * rows
    return nbytes


def answer_nbytes(lengths: Lengths, config: ModelConfig) -> int:
    """Of these sequences' outputs as the client gets them: all are as long as the longest."""
    if len(lengths[0]) > 1:
        lengths = [[max(group)] * len(group) for group in lengths]
    return output_nbytes(lengths, config)


def check_nbytes(nbytes: int, most: float) -> None:
    """Raises RequestFailed where an answer would be too large."""
    if nbytes > most:
        raise RequestFailed(
            f"the request would be answered with {nbytes} bytes; {most} is the most, by"
            " max_queue_bytes or max_batch_bytes: send fewer sequences, or of more equal length"
        )


def _lengths(
    inputs: Mapping[str, Array], config: ModelConfig, group: int, count: int
) -> Sequence[int]:
    """Of the sequences, in the group of that number."""
    if not config.has_ragged_input:
        return [1] * count
    ragged = {
        spec.name: inputs[spec.name].shape[1]
        for spec in config.inputs
        if spec.ragged and spec.group == group and spec.name in inputs
    }
    if not ragged:
        return [0 if group else 1] * count
    least, width = config.parameters.min_sequence_length, min(ragged.values())
    if width < least or width != max(ragged.values()):
        raise InvalidInput(
            f"ragged inputs need the same number of rows, at least {least}; got {ragged}"
        )
    name = config.groups[group].lengths
    given: list[int] = inputs[name].ravel().tolist() if name in inputs else [width] * count
    if min(given) < least or max(given) > width:
        raise InvalidInput(
            f"'{name}' holds {min(given)} to {max(given)}; it must be {least} to {width}"
        )
    return given
