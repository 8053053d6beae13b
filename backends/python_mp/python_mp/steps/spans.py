"""Logits of tokens to spans of text with a label: the last step of an ensemble of the task
`tokens`. As the aggregation `simple` of transformers' pipeline: neighbours of one label, B- and I-
apart from it, are one span, whose score is their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ..model.request import Array
from . import activations, answering, settings_file

NOTHING = "O"
"""The label of tokens that belong to no span."""


class SpanError(ValueError):
    """A request that is not served; the message says why."""


@dataclass(frozen=True)
class Span:
    """Characters start to end of a text."""

    start: int
    end: int
    label: str
    score: float


def spans(logits: Array, offsets: Array, labels: Sequence[str]) -> list[Span]:
    """Of one text, in its order.

    Args:
        logits: float32 [tokens, labels].
        offsets: int32 [tokens, 2], negative where there is no token of the text.
    """
    of_text = offsets[:, 0] >= 0
    scores, offsets = activations.softmax(logits[of_text]), offsets[of_text]
    found = [labels[each] for each in scores.argmax(-1)]
    begins = [n for n in range(len(found)) if n == 0 or _begins(found[n - 1], found[n])]
    made = [
        Span(
            int(offsets[first, 0]),
            int(offsets[last - 1, 1]),
            found[first].split("-", 1)[-1],
            float(scores[first:last].max(-1).mean()),
        )
        for first, last in pairwise([*begins, len(found)])
    ]
    return [span for span in made if span.label != NOTHING]


def _begins(before: str, label: str) -> bool:
    return label.startswith("B-") or _kind(before) != _kind(label)


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.labels: list[str] = settings_file.read(args)["labels"]

    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.each(requests, self._tensors, SpanError)

    def _tensors(self, request: Any) -> list[Any]:
        logits, offsets = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("LOGITS", "OFFSETS")
        )
        texts = zip(logits, offsets, strict=True)
        rows = [spans(values, places, self.labels) for values, places in texts]
        made = _filled_up(rows)
        return [pb_utils.Tensor(name, array) for name, array in made.items()]


def _filled_up(rows: Sequence[Sequence[Span]]) -> dict[str, Array]:
    """SPAN int32 [B, most, 2], LABEL BYTES [B, most], SCORE float32 [B, most]; at least one place a
    row, since Triton hands on no empty tensor. Where there is no span the label is empty."""
    shape = len(rows), max(1, *map(len, rows))
    where, scores = np.zeros((*shape, 2), np.int32), np.zeros(shape, np.float32)
    labels = np.full(shape, b"", np.object_)
    for row, found in enumerate(rows):
        for place, span in enumerate(found):
            where[row, place] = span.start, span.end
            labels[row, place], scores[row, place] = span.label.encode(), span.score
    return {"SPAN": where, "LABEL": labels, "SCORE": scores}
