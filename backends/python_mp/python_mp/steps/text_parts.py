"""The text of an answer in parts, as its tokens come: whatever the parts, they join to the text of
all its tokens. Nothing is kept between them."""

from __future__ import annotations

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

CONTEXT = 8
"""Tokens before a part that decide how it is shown: a character has four bytes at most."""
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_Decoder = getincrementaldecoder("utf-8")


class TextParts:
    """
    Args:
        tokenizer: whose decoder makes a text of all tokens; special ones are not shown.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        kinds = {*_kinds(json.loads(tokenizer.to_str())["decoder"])}
        self._alphabet = _alphabet() if "ByteLevel" in kinds else {}
        self._has_bytes = "ByteFallback" in kinds
        added = tokenizer.get_added_tokens_decoder().items()
        self._hidden = {number for number, token in added if token.special}

    def text(self, context: Sequence[int], ids: Sequence[int], is_last: bool) -> str:
        """What `ids` add. Where they end within a character, it is shown by the part that ends it,
        or by the last one as U+FFFD.

        Args:
            context: up to CONTEXT ids of the answer before them; none or -1 only at its beginning.
        """
        decoder = _Decoder("replace")
        before: list[int] = []
        for token in self._shown(context):
            decoder.decode(self._bytes(before, token))  # Shown already, but for what is incomplete.
            before.append(token)
        parts = []
        for token in self._shown(ids):
            parts.append(decoder.decode(self._bytes(before[-CONTEXT:], token)))
            before.append(token)
        return "".join([*parts, decoder.decode(b"", is_last)])

    def _shown(self, ids: Sequence[int]) -> Iterator[int]:
        for token in ids:
            is_known = token >= 0 and self._tokenizer.id_to_token(token) is not None
            if is_known and token not in self._hidden:
                yield token

    def _bytes(self, before: list[int], token: int) -> bytes:
        """What the token adds to the text of those before: its first word may have no space."""
        said = str(self._tokenizer.id_to_token(token))
        if self._alphabet:
            found = [self._alphabet.get(each) for each in said]
            known = [each for each in found if each is not None]
            return bytes(known) if len(known) == len(found) else said.encode()
        if self._has_bytes and (number := _BYTE.fullmatch(said)):
            byte = bytes.fromhex(number[1])
            if before or not byte.isascii():  # A space may be the first byte, and not be shown.
                return byte
        shown = self._tokenizer.decode(before) if before else ""
        return self._tokenizer.decode([*before, token])[len(shown) :].encode()


def _kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    if decoder:
        yield str(decoder["type"])
        for each in decoder.get("decoders", ()):
            yield from _kinds(each)


def _alphabet() -> dict[str, int]:
    """The byte of each character in the tokens of GPT-2 and all that are made as they are: bytes
    that are no printable characters of Latin-1 stand from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    moved = {chr(0x100 + number): byte for number, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | moved
