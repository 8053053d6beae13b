"""A conversation, or a text to go on with, to token ids: the first step of an ensemble that
generates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # Before the import, as in tokenizer.py.

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from ..model import ensembles
from ..model.errors import LoadError, for_clients, in_parts
from ..model.manifest import Manifest
from . import answering, conversation, settings_file, text_input
from .chat_template import ChatTemplate
from .text_input import TextError

MAX_BYTES = 4 * 1024 * 1024
"""Some 1 M tokens."""


class TritonPythonModel:
    """MESSAGES BYTES [1], a conversation in JSON, or TEXT BYTES [1] -> INPUT_IDS INT32 [n]."""

    def initialize(self, args: dict[str, str]) -> None:
        version = Path(args["model_repository"]) / args["model_version"]
        try:
            ensembles.admit(version, Manifest.read(version))
            self._template = ChatTemplate(settings_file.read(args))
        except LoadError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))

    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.each(requests, self._answer, TextError, in_parts)

    def _answer(self, request: Any) -> list[Any]:
        given = {
            name: tensor.as_numpy().ravel()
            for name in ("MESSAGES", "TEXT")
            if (tensor := pb_utils.get_input_tensor_by_name(request, name)) is not None
        }
        if len(given) != 1:
            raise TextError("A request has either MESSAGES or TEXT.")
        ((name, rows),) = given.items()
        if len(rows) != 1:
            raise TextError(f"{name} has {len(rows)} rows; a request is for one answer.")
        (text,) = text_input.decode(name, rows, MAX_BYTES)
        ids = np.array([self._ids(name, text)], np.int32)
        return [pb_utils.Tensor("INPUT_IDS", ids)]

    def _ids(self, name: str, text: str) -> list[int]:
        """Templates write the tokens that begin a text themselves."""
        is_chat = name == "MESSAGES"
        whole = self._template.text(conversation.read(text)) if is_chat else text
        try:
            found = self.tokenizer.encode(whole, add_special_tokens=not is_chat).ids
        except Exception as error:
            raise TextError(f"{name} cannot be tokenized: {for_clients(error)}.") from None
        if not found:
            raise TextError(f"{name} has no token.")
        return found
