"""Where tokens lie in a text, and which are of one word, as transformers' pipeline sees it."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Encoding, Tokenizer

OF_NO_TEXT = -1, -1


def places(encoding: Encoding) -> list[tuple[int, int]]:
    """Start and end of each token in the text, in characters; OF_NO_TEXT of what was added."""
    pairs = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    return [OF_NO_TEXT if is_special else offsets for offsets, is_special in pairs]


class Words:
    """
    Args:
        unknown: the id of tokens that stand for what the tokenizer does not know; those begin one.
    """

    def __init__(self, tokenizer: Tokenizer, unknown: int | None) -> None:
        self._has_prefix = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))
        self._unknown = unknown

    def continuing(self, text: str, encoding: Encoding) -> list[int]:
        """For each token 1 where it is of the word of the token before it."""
        return [int(each) for each in self._continuing(text, encoding)]

    def _continuing(self, text: str, encoding: Encoding) -> Iterator[bool]:
        """A tokenizer without a prefix for what continues a word does not know: a space tells."""
        tokens = zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)
        for number, token, (start, end) in tokens:
            if number == self._unknown:
                yield False
            elif self._has_prefix:
                yield len(token) != end - start
            else:
                yield start > 0 and " " not in text[start - 1 : start + 1]
