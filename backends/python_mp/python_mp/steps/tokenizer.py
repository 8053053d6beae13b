"""Text to token ids: the first step of an ensemble."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Before the import. The ranks own the cores: a second thread here takes from them what it gains.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from ..model import ensembles
from ..model.errors import LoadError, for_clients
from ..model.manifest import Manifest
from ..model.request import Array
from . import answering

MAX_BYTES = 64 * 1024
Text = tuple[int, str]
"""A text, and its index in the request."""


class TextError(ValueError):
    """A text that is not served; the message names its index in the request."""


def decode(texts: Iterable[bytes]) -> list[str]:
    """Texts of one request from UTF-8.

    Raises TextError for a text that is empty, longer than MAX_BYTES or not UTF-8.
    """
    return [_decode(index, text) for index, text in enumerate(texts)]


def _decode(index: int, text: bytes) -> str:
    if not text:
        raise TextError(f"TEXT[{index}] is empty.")
    if len(text) > MAX_BYTES:
        raise TextError(f"TEXT[{index}] has {len(text)} bytes; the limit is {MAX_BYTES}.")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise TextError(f"TEXT[{index}] is not UTF-8 at byte {error.start}.") from None


def pack(rows: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Token ids as INPUT_IDS int32 [B, longest], filled up with 0, and LENGTHS int32 [B, 1]."""
    lengths = [len(row) for row in rows]
    ids = [[*row, *[0] * (max(lengths) - len(row))] for row in rows]
    return np.array(ids, np.int32), np.array(lengths, np.int32)[:, None]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        version = Path(args["model_repository"]) / args["model_version"]
        try:
            built = Manifest.read(version)
            ensembles.admit(version, built.source.get("tokenizer") if built else None)
        except LoadError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        # Truncation and padding are part of the file: the build writes them.
        self.tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))

    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.together(requests, _texts, self._ids, _tensors, TextError)

    def _ids(self, texts: list[Text]) -> list[list[int]]:
        """All in one go; one text alone is named if it cannot be read."""
        try:
            encoded = self.tokenizer.encode_batch_fast([text for _, text in texts])
            return [encoding.ids for encoding in encoded]
        except Exception as error:
            if len(texts) > 1:
                return [ids for text in texts for ids in self._ids([text])]
            raise TextError(
                f"TEXT[{texts[0][0]}] cannot be tokenized: {for_clients(error)}."
            ) from None


def _texts(request: Any) -> list[Text]:
    return list(enumerate(decode(request.inputs()[0].as_numpy().ravel())))


def _tensors(rows: list[list[int]]) -> list[Any]:
    ids, lengths = pack(rows)
    return [pb_utils.Tensor("INPUT_IDS", ids), pb_utils.Tensor("LENGTHS", lengths)]
