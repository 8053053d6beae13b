"""Texts, or pairs of a query and a text, to token ids: the first step of an ensemble.

config.pbtxt says which: with an input QUERY they are pairs, with TEXT_PAIR those of the requests
that have it are. Only the outputs that it lists are made.
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
from . import answering, settings_file, text_input, words
from .prompts import Prompts
from .text_input import TextError

Text = tuple[int, str | tuple[str, ...]]
"""A text or a pair, and its index in the request."""
Row = tuple[Any, Encoding]
"""A text or a pair, and its tokens."""
PAIR = "TEXT_PAIR"
"""The second part of a pair, where a client may leave it out."""
CUT = "python_mp_truncated_texts_total"


PARTS: Mapping[str, Callable[[Encoding], Sequence[Any]]] = {
    "INPUT_IDS": lambda encoding: encoding.ids,
    "TOKEN_TYPE_IDS": lambda encoding: encoding.type_ids,
    "OFFSETS": words.places,
}
"""What there is of each token, by the name of the output."""
FILLING = {"OFFSETS": words.OF_NO_TEXT[0]}
"""What rows are filled up with; 0 where nothing is said."""
CONTINUES = "CONTINUES"
"""Which tokens are of the word before them: for this a text is needed, too."""


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
            ensembles.admit(version, Manifest.read(version))
            said = settings_file.read(args)
            self._prompts = Prompts(said)
        except LoadError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        # Truncation and padding are part of the file: the build writes them.
        self.tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))
        config = json.loads(args["model_config"])
        given, wanted = ({each["name"] for each in config[key]} for key in ("input", "output"))
        self._reads = [name for name in ("QUERY", "TEXT", PAIR) if name in given]
        self._makes = [name for name in (*PARTS, CONTINUES) if name in wanted]
        self._words = words.Words(self.tokenizer, said.get("unknown"))
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
        has_pair = pb_utils.get_input_tensor_by_name(request, PAIR) is not None
        names = [name for name in self._reads if name != PAIR or has_pair]
        first, *second = (text_input.of(request, name) for name in names)
        first = self._prompts.before(first, request)
        return list(enumerate(zip(first, *second, strict=True) if second else first))

    def _encoded(self, texts: list[Text]) -> list[Row]:
        """All in one go; one text alone is named if it cannot be read."""
        encode = self.tokenizer.encode_batch_fast  # which knows of no offsets
        if "OFFSETS" in self._makes:
            encode = self.tokenizer.encode_batch
        try:
            found = encode([text for _, text in texts])
        except Exception as error:
            if len(texts) > 1:
                return [found for text in texts for found in self._encoded([text])]
            index, text = texts[0]
            names = self._reads[: 1 if isinstance(text, str) else len(text)]
            name = " with ".join(f"{name}[{index}]" for name in names)
            raise TextError(f"{name} cannot be tokenized: {for_clients(error)}.") from None
        self._count(found)
        return [(text, tokens) for (_, text), tokens in zip(texts, found, strict=True)]

    def _count(self, found: Sequence[Encoding]) -> None:
        """Those that were cut."""
        cut = sum(bool(encoding.overflowing) for encoding in found)
        self._sink.add("COUNTER", CUT, "Texts cut at the model's limit", self._labels, cut)

    def _tensors(self, rows: list[Row]) -> list[Any]:
        lengths = np.array([[len(encoding.ids)] for _, encoding in rows], np.int32)
        made = {
            name: pack([self._part(name, row) for row in rows], FILLING.get(name, 0))
            for name in self._makes
        }
        return [pb_utils.Tensor(*each) for each in ({**made, "LENGTHS": lengths}).items()]

    def _part(self, name: str, row: Row) -> Sequence[Any]:
        if name == CONTINUES:
            return self._words.continuing(*row)
        return PARTS[name](row[1])
