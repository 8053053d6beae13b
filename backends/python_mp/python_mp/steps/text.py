"""Token ids to text, part by part: the last step of an ensemble that generates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # Before the import, as in tokenizer.py.

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from ..front.place.presence import runtime_folder
from ..model import ensembles
from ..model.errors import LoadError, PythonMpError, in_parts
from ..model.manifest import Manifest
from . import answering
from .handed_on import HandedOn
from .text_parts import TextParts


class TritonPythonModel:
    """Each part of an answer, OUTPUT_IDS INT32 [n], the CONTEXT_IDS INT32 [1 to 8] of the answer
    before it, or -1, FINISH_REASON BYTES [1], which is empty but in the last part, and TRIM INT32
    [1], characters at its end that are not to be shown -> ANSWER BYTES [1]. Of STREAM INT32 [5] and
    FAILURE BYTES [1], both optional, see handed_on.py."""

    def initialize(self, args: dict[str, str]) -> None:
        version = Path(args["model_repository"]) / args["model_version"]
        try:
            ensembles.admit(version, Manifest.read(version))
        except LoadError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.handed_on = HandedOn(runtime_folder())
        self.parts = TextParts(Tokenizer.from_file(str(version / "tokenizer.json")))

    def execute(self, requests: list[Any]) -> list[Any]:
        return answering.each(requests, self._answer, PythonMpError, in_parts)

    def _answer(self, request: Any) -> list[Any]:
        self.handed_on.look(request)
        ids, context, reason, trim = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel().tolist()
            for name in ("OUTPUT_IDS", "CONTEXT_IDS", "FINISH_REASON", "TRIM")
        )
        text = self.parts.text(context, ids, is_last=bool(reason[0]))
        shown = text[: len(text) - trim[0]] if trim[0] else text
        return [pb_utils.Tensor("ANSWER", np.array([[shown.encode()]], np.object_))]
