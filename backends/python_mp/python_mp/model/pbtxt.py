"""Protobuf's text format, read without protobuf: what a stub needs to know of its neighbours.

A message is a dictionary from each field's name to the list of its values: messages and texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Message = dict[str, list[Any]]
_TOKEN = re.compile(
    r"""\#[^\n]* | (?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    | (?P<word>[-+.\w/]+) | (?P<mark>[{}<>\[\]:,;])""",
    re.VERBOSE,
)
_CLOSING = {"{": "}", "<": ">"}


def parse(text: str) -> Message:
    """Raises ValueError where the text ends too early; words that make no sense are passed over."""
    return _message(_tokens(text), "")


def _tokens(text: str) -> Iterator[str]:
    return (found[0] for found in _TOKEN.finditer(text) if found.lastgroup)


def _message(tokens: Iterator[str], end: str) -> Message:
    fields: Message = {}
    name = ""
    for token in tokens:
        if token == end:
            return fields
        if token in _CLOSING:
            fields.setdefault(name, []).append(_message(tokens, _CLOSING[token]))
        elif token == "[":
            fields.setdefault(name, []).extend(_list(tokens))
        elif token == ":":
            fields.setdefault(name, []).extend(_value(tokens))
        elif token not in ",;":
            name = token
    if end:
        raise ValueError(f"the text ends before {end}")
    return fields


def _value(tokens: Iterator[str]) -> list[Any]:
    token = next(tokens, "")
    if token in _CLOSING:
        return [_message(tokens, _CLOSING[token])]
    return _list(tokens) if token == "[" else [_plain(token)]


def _list(tokens: Iterator[str]) -> list[Any]:
    values: list[Any] = []
    for token in tokens:
        if token == "]":
            return values
        if token in _CLOSING:
            values.append(_message(tokens, _CLOSING[token]))
        elif token != ",":
            values.append(_plain(token))
    raise ValueError("the text ends before ]")


def _plain(token: str) -> str:
    return token[1:-1] if token[:1] in ("'", '"') else token
