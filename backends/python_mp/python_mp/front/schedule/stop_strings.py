"""Texts that end a stream: found as its tokens come, and nothing shown that may begin one.

    tokens      " foo" "bar" "\\n" "U" "ser"       stop "\\nUser:"
    may be sent   yes    yes   held: what follows decides

Characters are cut otherwise than tokens are, so all tokens are sent in the end, and with them how
many characters of theirs belong to the stop. Tokens of which only several together make text are
one piece, which is held as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

_INCOMPLETE = "\ufffd"
_MOST_INCOMPLETE = 8
"""Tokens of one character; what is none by then never will be."""
_MOST_CONTEXT = 8
"""Tokens before a piece that decide on its text, however many of them have none."""


class Piece(NamedTuple):
    """Tokens `first` to `last` of the stream, both included, and the text they make."""

    first: int
    last: int
    text: str


class StopStrings:
    """
    Args:
        decode: text of ids, as the client's is made.
    """

    def __init__(self, stops: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        self._stops = stops
        self._decode = decode
        self._ids: list[int] = []
        self._shown_from, self._new_from = 0, 0
        self._pieces: list[Piece] = []
        """Those that may begin a stop."""

    def add(self, token: int) -> int:
        """The next token of the stream. If it completes a stop, the characters from where that
        begins to the end of the text; else 0."""
        self._ids.append(token)
        text = self._new_text()
        if text is None:
            return 0
        self._pieces.append(Piece(self._new_from, len(self._ids) - 1, text))
        if text:
            self._shown_from = self._new_from
        self._new_from = len(self._ids)
        self._shown_from = max(self._shown_from, self._new_from - _MOST_CONTEXT)
        held = "".join(piece.text for piece in self._pieces)
        starts = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if starts:
            self._pieces.clear()  # Where too few tokens are there for it to count, it never does.
            return len(held) - min(starts)
        self._let_go(len(held) - max(_overlap(held, stop) for stop in self._stops))
        return 0

    @property
    def clear(self) -> int:
        """Tokens, from the first, that belong to no stop whatever comes."""
        return self._pieces[0].first if self._pieces else self._new_from

    def _new_text(self) -> str | None:
        """Of the tokens since the last piece, as it is behind the piece before; empty of special
        ones. None as long as they end within a character."""
        before = self._decode(self._ids[self._shown_from : self._new_from])
        text = self._decode(self._ids[self._shown_from :])
        waits = text.endswith(_INCOMPLETE) and len(self._ids) - self._new_from < _MOST_INCOMPLETE
        return None if waits else text[len(before) :]

    def _let_go(self, characters: int) -> None:
        """Pieces that end within so many."""
        while self._pieces and len(self._pieces[0].text) <= characters:
            characters -= len(self._pieces.pop(0).text)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text may begin the stop."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
