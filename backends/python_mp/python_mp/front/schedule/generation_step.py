"""One step of generation, as the ranks get it: rows of many streams end to end.

Names, dtypes and shapes of the tensors are listed in docs/architecture.md, "Generation".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from ...model.batch import Batch
from ...model.config import ModelConfig
from ...model.ragged_groups import CU_SEQLENS
from ...model.request import Array, Outputs, Request
from ...model.sampling_columns import Real, Whole
from .block_pool import blocks_for
from .stream import Stream

NO_NUMBERS = -1
"""The next id of a stream whose logits hold what is no number."""


class Chunk(NamedTuple):
    """Rows of one stream: its tokens `start` to `stop`, the latter excluded."""

    stream: Stream
    start: int
    stop: int
    sampled: bool
    """The next token is made of its last row."""

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    @property
    def is_next(self) -> bool:
        """It is the stream's latest token, of a prompt or generated."""
        return self.sampled and self.tokens == 1


@dataclass(frozen=True)
class GenerationStep(Batch):
    """`epoch` counts how often the cache was given up: results of an earlier one are worthless.
    `vocabulary` is how many ids the model has."""

    chunks: tuple[Chunk, ...]
    epoch: int
    vocabulary: int
    first_time: tuple[Stream, ...]
    """Streams of which it is the first step."""
    through: list[Request] = field(default_factory=list)
    """Those that have ended by it."""

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(chunk.stream for chunk in self.chunks)

    @property
    def begun(self) -> tuple[Request, ...]:
        return self.first_time

    @property
    def ended(self) -> tuple[Request, ...]:
        return tuple(self.through)

    @property
    def sequences(self) -> int:
        return len(self.chunks)

    @cached_property
    def tokens(self) -> int:
        return sum(chunk.tokens for chunk in self.chunks)

    @property
    def tokens_saved(self) -> int:
        longest = max(chunk.tokens for chunk in self.chunks)
        return longest * len(self.chunks) - self.tokens

    @cached_property
    def sampled(self) -> list[Stream]:
        """In the order of the outputs' rows."""
        return [chunk.stream for chunk in self.chunks if chunk.sampled]

    def fault(self, outputs: Outputs) -> str:
        count, ids = len(self.sampled), outputs.get("NEXT_IDS")
        if ids is None or ids.shape != (count,) or ids.dtype.kind != "i":
            return (
                f"it gave {'no' if ids is None else list(ids.shape)} next ids for {count} streams"
            )
        least, most = ids.min(initial=NO_NUMBERS), ids.max(initial=NO_NUMBERS)
        if least < NO_NUMBERS or most >= self.vocabulary:
            wrong = least if least < NO_NUMBERS else most
            return f"it gave the next id {wrong}; the model's ids are 0 to {self.vocabulary - 1}"
        return self._fault_of_logprobs(outputs, count)

    def _fault_of_logprobs(self, outputs: Outputs, count: int) -> str:
        asked = [s.settings.logprobs for s in self.sampled if s.settings.logprobs is not None]
        if not asked:
            return ""
        top, wanted = max(asked), {"LOGPROBS": 1, "TOP_IDS": 2, "TOP_LOGPROBS": 2}
        for name, dims in wanted.items():
            shape = outputs[name].shape if name in outputs else ()
            if len(shape) != dims or shape[0] != count or min(shape[1:], default=top) < top:
                return (
                    f"it gave {name} {list(shape)} for {count} streams, of which one asks for {top}"
                )
        return ""

    def pack(self, config: ModelConfig) -> dict[str, list[Array]]:
        chunks = self.chunks
        width = blocks_for(max(chunk.stop for chunk in chunks))
        counts = (chunk.tokens for chunk in chunks)
        at = [index for index, chunk in enumerate(chunks) if chunk.sampled]
        return {
            "INPUT_IDS": [chunk.stream.ids[chunk.start : chunk.stop] for chunk in chunks],
            CU_SEQLENS: _int32(accumulate(counts, initial=0)),
            "context_lengths": _int32(chunk.stop for chunk in chunks),
            "block_table": [_row(chunk.stream.pages.table, width) for chunk in chunks],
            "sampled": _int32(at),
            "sampling": [
                np.array([s.reals for s in self.sampled], np.float32).reshape(-1, len(Real))
            ],
            "sampling_ints": [
                np.array([s.wholes for s in self.sampled], np.int64).reshape(-1, len(Whole))
            ],
            **_history(self.sampled),
            **_biases(self.sampled),
        }


def _int32(values: object) -> list[Array]:
    return [np.array(list(values), np.int32)]  # type: ignore[call-overload]


def _row(table: Array, width: int) -> Array:
    """int32 [1, width]."""
    if len(table) < width:
        table = np.pad(table, (0, width - len(table)), constant_values=-1)
    return table[None, :width]


def _history(sampled: list[Stream]) -> dict[str, list[Array]]:
    known = [s.ids[: s.length if s.settings.penalises else 0] for s in sampled]
    return {
        "history": known or [np.zeros(0, np.int32)],
        "history_cu": _int32(accumulate(map(len, known), initial=0)),
        "history_prompt": _int32(s.prompt if s.settings.penalises else 0 for s in sampled),
    }


def _biases(sampled: list[Stream]) -> dict[str, list[Array]]:
    biases = [_bias(stream) for stream in sampled]
    return {
        "bias_ids": _int32(token for each in biases for token in each),
        "bias_values": [np.array([b for each in biases for b in each.values()], np.float32)],
        "bias_cu": _int32(accumulate(map(len, biases), initial=0)),
    }


def _bias(stream: Stream) -> dict[int, float]:
    biases = dict(stream.settings.logit_bias)
    if stream.generated < stream.settings.min_tokens:
        biases |= dict.fromkeys(stream.stop_ids, -np.inf)
    return biases
