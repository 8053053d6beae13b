"""From the classes of tokens to spans of text, as transformers' pipeline aggregates them.

Neighbours of one label, B- and I- apart from it, are one span, whose score is their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..model.request import Array
from . import activations

NOTHING = "O"
"""The label of tokens that belong to no span."""


@dataclass(frozen=True)
class Span:
    """Characters start to end of a text."""

    start: int
    end: int
    label: str
    score: float


STRATEGIES: Mapping[str, Callable[[Array], Array]] = {
    "simple": lambda scores: scores[0],
    "first": lambda scores: scores[0],
    "max": lambda scores: scores[scores.max(-1).argmax()],
    "average": lambda scores: scores.mean(0),
}
"""From the scores of a word's tokens [tokens, labels] to its own [labels]."""
SIMPLE = "simple"
"""Where each token is a word by itself."""


def spans(
    logits: Array,
    offsets: Array,
    labels: Sequence[str],
    strategy: str = SIMPLE,
    continues: Array | None = None,
) -> list[Span]:
    """Of one text, in its order.

    Args:
        logits: float32 [tokens, labels].
        offsets: int32 [tokens, 2], negative where there is no token of the text.
        strategy: one of STRATEGIES.
        continues: int32 [tokens], 1 where a token is of the word before it; `simple` has no words.
    """
    of_text = offsets[:, 0] >= 0
    scores, offsets = activations.softmax(logits[of_text]), offsets[of_text]
    begins = np.ones(len(scores), bool)
    if continues is not None and strategy != SIMPLE:
        begins[1:] = continues[of_text][1:] == 0
    words = [*pairwise([*np.flatnonzero(begins).tolist(), len(scores)])]
    by_word = [STRATEGIES[strategy](scores[first:last]) for first, last in words]
    places = [(int(offsets[first, 0]), int(offsets[last - 1, 1])) for first, last in words]
    return _joined(places, by_word, labels)


def _joined(
    places: Sequence[tuple[int, int]], scores: Sequence[Array], labels: Sequence[str]
) -> list[Span]:
    """The spans of words: where each is, and its scores [labels]."""
    found = [labels[int(each.argmax())] for each in scores]
    begins = [n for n in range(len(found)) if n == 0 or _begins(found[n - 1], found[n])]
    made = [
        Span(
            places[first][0],
            places[last - 1][1],
            found[first].split("-", 1)[-1],
            float(np.mean([each.max() for each in scores[first:last]])),
        )
        for first, last in pairwise([*begins, len(found)])
    ]
    return [span for span in made if span.label != NOTHING]


def _begins(before: str, label: str) -> bool:
    return label.startswith("B-") or _kind(before) != _kind(label)


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label
