"""Logits of tokens to spans of text with a label: the last step of an ensemble of the task
`tokens`.

The parameter `aggregation_strategy` of config.pbtxt is that of transformers' pipeline: what are
neighbours, tokens (`simple`) or words, and which scores a word of several tokens has: those of its
first (`first`), of its surest (`max`), or their mean (`average`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ..model.request import Array
from . import answering, settings_file
from .aggregation import SIMPLE, STRATEGIES, Span, spans

CONTINUES = "CONTINUES"


class SpanError(ValueError):
    """A request that is not served; the message says why."""


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.labels: list[str] = settings_file.read(args)["labels"]
        config = json.loads(args["model_config"])
        self.reads = ["LOGITS", "OFFSETS"]
        said = config.get("parameters", {}).get("aggregation_strategy", {})
        self.strategy = said.get("string_value", SIMPLE)
        self._check({each["name"] for each in config.get("input", ())})

    def _check(self, given: set[str]) -> None:
        """Raises TritonModelException where the strategy is not known, or words are not."""
        if self.strategy not in STRATEGIES:
            raise pb_utils.TritonModelException(
                f"config.pbtxt has the aggregation_strategy {self.strategy!r}; there are"
                f" {', '.join(STRATEGIES)}"
            )
        if self.strategy == SIMPLE:
            return
        if CONTINUES not in given:
            raise pb_utils.TritonModelException(
                f"aggregation_strategy {self.strategy} needs the input {CONTINUES}, which the step"
                " before makes: add it to config.pbtxt of both and of the ensemble, or make them"
                " anew by `python -m build_scripts.new`"
            )
        self.reads.append(CONTINUES)

    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.each(requests, self._tensors, SpanError)

    def _tensors(self, request: Any) -> list[Any]:
        given = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.reads]
        rows = [
            spans(logits, offsets, self.labels, self.strategy, *more)
            for logits, offsets, *more in zip(*given, strict=True)
        ]
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
