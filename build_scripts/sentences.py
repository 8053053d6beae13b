"""Real English to calibrate with and to judge by: Python's own language reference, which every
Python brings."""

import random
import re
from pydoc_data.topics import topics


def sentences(n: int = 200) -> list[str]:
    """n different texts of about 480, always the same on one version of Python. `others` needs some
    that share no sentence with them.

    Of ten, six are sentences, three paragraphs, and one is a run of paragraphs that mostly
    exceeds 256 tokens.
    """
    paragraphs = _paragraphs()
    texts = [_text(paragraphs, at, kind=at % 10) for at in range(len(paragraphs))]
    different = list(dict.fromkeys(texts))
    return random.Random(0).sample(different, min(n, len(different)))


def others(judged: list[str], n: int) -> list[str]:
    """At most n more texts of the same kinds, which share no sentence with those."""
    used = {sentence for text in judged for sentence in _split(text)}
    rest = [each for each in _paragraphs() if used.isdisjoint(_split(each))]
    texts = [_text(rest, at, kind=at % 10) for at in range(len(rest))]
    different = list(dict.fromkeys(texts))
    return random.Random(1).sample(different, min(n, len(different)))


def _text(paragraphs: list[str], at: int, kind: int) -> str:
    if kind == 9:
        return " ".join(paragraphs[at : at + 6])
    if kind >= 6:
        return paragraphs[at]
    parts = _split(paragraphs[at])
    return parts[kind % len(parts)]


def _split(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)


def _paragraphs() -> list[str]:
    """Prose of the reference: flush left, more than a few words, ending as a sentence does."""
    pieces = (piece for name in sorted(topics) for piece in topics[name].split("\n\n"))
    flat = [" ".join(p.split()) for p in pieces if p[:1].isupper() and p.endswith(".")]
    return [p for p in dict.fromkeys(flat) if p.count(" ") >= 3]
