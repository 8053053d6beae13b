"""Texts, or pairs of a query and a text, to token ids: the first step of an ensemble.

config.pbtxt says which: with an input QUERY they are pairs, and only the outputs that it lists are
made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Before the import. The ranks own the cores: a second thread here takes from them what it gains.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Encoding, Tokenizer

from ..model import ensembles
from ..model.errors import LoadError, for_clients
from ..model.manifest import Manifest
from ..model.request import Array
from ..triton.metric_sink import TritonSink
from . import answering, settings_file, text_input
from .prompts import Prompts
from .text_input import TextError

Text = tuple[int, str | tuple[str, ...]]
"""A text or a pair, and its index in the request."""
OF_NO_TEXT = -1, -1
CUT = "python_mp_truncated_texts_total"


def places(encoding: Encoding) -> list[tuple[int, int]]:
    """Start and end of each token in the text, in characters; OF_NO_TEXT of what was added."""
    pairs = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    return [OF_NO_TEXT if is_special else offsets for offsets, is_special in pairs]


PARTS: Mapping[str, Callable[[Encoding], Sequence[Any]]] = {
    "INPUT_IDS": lambda encoding: encoding.ids,
    "TOKEN_TYPE_IDS": lambda encoding: encoding.type_ids,
    "OFFSETS": places,
}
"""What there is of each token, by the name of the output."""


FILLING = {"OFFSETS": OF_NO_TEXT[0]}
"""What rows are filled up with; 0 where nothing is said."""


def pack(rows: Sequence[Sequence[Any]], filling: int = 0) -> Array:
    """Rows of unequal length as int32 [B, longest, ...], filled up."""
    arrays = [np.array(row, np.int32) for row in rows]
    shape = len(rows), max(map(len, rows)), *arrays[0].shape[1:]
    packed = np.full(shape, filling, np.int32)
    for place, row in zip(packed, arrays, strict=True):
        place[: len(row)] = row
    return packed


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        version = Path(args["model_repository"]) / args["model_version"]
        try:
            built = Manifest.read(version)
            ensembles.admit(version, built.source.get("tokenizer") if built else None)
            self._prompts = Prompts(settings_file.read(args))
        except LoadError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        # Truncation and padding are part of the file: the build writes them.
        self.tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))
        config = json.loads(args["model_config"])
        given, wanted = ({each["name"] for each in config[key]} for key in ("input", "output"))
        self._reads = [name for name in ("QUERY", "TEXT") if name in given]
        self._makes = [name for name in PARTS if name in wanted]
        self._sink = TritonSink()
        self._labels = {"model": args["model_name"], "version": args["model_version"]}
        self._count([])

    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.together(
            requests, self._texts, self._encoded, self._tensors, text_input.TextError
        )

    def finalize(self) -> None:
        self._sink.clear()

    def _texts(self, request: Any) -> list[Text]:
        first, *second = (text_input.of(request, name) for name in self._reads)
        first = self._prompts.before(first, request)
        return list(enumerate(zip(first, *second, strict=True) if second else first))

    def _encoded(self, texts: list[Text]) -> list[Encoding]:
        """All in one go; one text alone is named if it cannot be read."""
        encode = self.tokenizer.encode_batch_fast  # which knows of no offsets
        if "OFFSETS" in self._makes:
            encode = self.tokenizer.encode_batch
        try:
            found = encode([text for _, text in texts])
        except Exception as error:
            if len(texts) > 1:
                return [found for text in texts for found in self._encoded([text])]
            name = " with ".join(f"{name}[{texts[0][0]}]" for name in self._reads)
            raise TextError(f"{name} cannot be tokenized: {for_clients(error)}.") from None
        self._count(found)
        return found

    def _count(self, found: Sequence[Encoding]) -> None:
        """Those that were cut."""
        cut = sum(bool(encoding.overflowing) for encoding in found)
        self._sink.add("COUNTER", CUT, "Texts cut at the model's limit", self._labels, cut)

    def _tensors(self, found: list[Encoding]) -> list[Any]:
        lengths = np.array([[len(encoding.ids)] for encoding in found], np.int32)
        made = {
            name: pack([PARTS[name](each) for each in found], FILLING.get(name, 0))
            for name in self._makes
        }
        return [pb_utils.Tensor(*each) for each in ({**made, "LENGTHS": lengths}).items()]
