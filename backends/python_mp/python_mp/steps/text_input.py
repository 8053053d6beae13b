"""Texts as clients send them: BYTES to str."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import triton_python_backend_utils as pb_utils

MAX_BYTES = 64 * 1024


class TextError(ValueError):
    """A text that is not served; the message names its index in the request."""


def of(request: Any, name: str) -> list[str]:
    """The texts of that input, one a row. Raises TextError."""
    return decode(name, pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel())


def decode(name: str, texts: Iterable[bytes], most: int = MAX_BYTES) -> list[str]:
    """Texts of one request from UTF-8.

    Raises TextError for a text that is empty, longer than so many bytes or not UTF-8.
    """
    return [_decode(f"{name}[{index}]", text, most) for index, text in enumerate(texts)]


def _decode(name: str, text: bytes, most: int) -> str:
    if not text:
        raise TextError(f"{name} is empty.")
    if len(text) > most:
        raise TextError(f"{name} has {len(text)} bytes; the limit is {most}.")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise TextError(f"{name} is not UTF-8 at byte {error.start}.") from None
