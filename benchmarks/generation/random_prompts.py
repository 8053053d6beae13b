"""Prompts of random ids, no two of which begin alike."""

from __future__ import annotations

import random
from itertools import count

_numbers = count()
LOWEST, HIGHEST = 1000, 49_000
"""Ids of words in SmolLM2's vocabulary."""
Prompt = list[int]


def different(number: int, tokens: int, before: Prompt | None = None) -> list[Prompt]:
    """So many prompts of `tokens` ids each, behind the same ids `before`. Never the same twice in a
    run, so that nothing is found in a cache."""
    draw = random.Random(next(_numbers))
    made = (draw.choices(range(LOWEST, HIGHEST), k=tokens) for _ in range(number))
    return [[*(before or []), *each] for each in made]
