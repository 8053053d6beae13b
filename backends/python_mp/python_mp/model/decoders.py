"""What the front must know of a decoder: its share of task.json, which the build writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LoadError
from .paths import present, regular

_NAME = "task.json"


@dataclass(frozen=True)
class Decoder:
    """
    Attributes:
        context_length: most tokens that a prompt and its answer may have together.
        vocabulary: ids are 0 to vocabulary - 1.
        eos_token_ids: the ids by which it says that an answer is complete.
        folder: the version directory, which has the tokenizer.
    """

    context_length: int
    vocabulary: int
    eos_token_ids: tuple[int, ...]
    folder: Path


def read(folder: Path) -> Decoder:
    """Raises LoadError if the version directory's task.json is not a decoder's."""
    if not present(folder, _NAME):
        raise LoadError(f"{folder} has no {_NAME}, which task 'generate' needs: build the model")
    path = regular(folder, _NAME)
    try:
        said: dict[str, Any] = json.loads(path.read_text())
        decoder = Decoder(
            int(said["context_length"]),
            int(said["vocabulary"]),
            tuple(map(int, said["eos_token_ids"])),
            folder,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LoadError(f"{path} is not as a build writes it: {error!r}") from None
    if min(decoder.context_length, decoder.vocabulary) < 1:
        raise LoadError(f"{path} says nothing of a decoder's context_length or vocabulary")
    return decoder
