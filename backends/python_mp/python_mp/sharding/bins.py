"""Sequences of unequal length in a rectangle, for graphs whose attention needs one.

Rows are as wide as the longest sequence; shorter ones share a row, and each attends to its own
segment only. So the rectangle is hardly larger than what it holds.

    lengths 5 2 3        row 0   a a a a a        segments  0 0 0 0 0
                         row 1   c c c b b                  2 2 2 1 1
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..model.request import Array

NOBODY = -1


def fill(lengths: Sequence[int]) -> tuple[Array, Array, Array]:
    """First fit, longest first.

    Returns:
        gather int32 [rows, width]: the token at each place, 0 where there is none.
        segments int32 [rows, width]: whose place it is, NOBODY where it is nobody's.
        scatter int32 [tokens]: each token's place in the flattened rectangle.
    """
    width = max(1, *lengths)
    places = _places(lengths, width)
    starts = np.cumsum([0, *lengths[:-1]])
    shape = (places.max() // width + 1, width)
    gather, segments = np.zeros(shape, np.int32), np.full(shape, NOBODY, np.int32)
    scatter = np.empty(sum(lengths), np.int32)
    for sequence, (length, start, place) in enumerate(zip(lengths, starts, places, strict=True)):
        gather.reshape(-1)[place : place + length] = np.arange(start, start + length)
        segments.reshape(-1)[place : place + length] = sequence
        scatter[start : start + length] = np.arange(place, place + length)
    return gather, segments, scatter


def _places(lengths: Sequence[int], width: int) -> Array:
    """Where each sequence begins in the flattened rectangle."""
    places, used = np.empty(len(lengths), np.int64), list[int]()
    for sequence in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if not (length := lengths[sequence]):
            places[sequence] = 0  # Nowhere, really.
            continue
        row = next((r for r, taken in enumerate(used) if taken + length <= width), len(used))
        if row == len(used):
            used.append(0)
        places[sequence] = row * width + used[row]
        used[row] += length
    return places
