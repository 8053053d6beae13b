"""Sizes that batches are filled up to, so that few CUDA graphs do for all."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

_FIRST = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
_STEPS = 4
"""From 1024 rows on, in each doubling: at most a quarter is filled up, an eighth on average."""
_LONGEST = (128, 512, 2048, 8192)
"""Rows of a sequence: attention's kernels have work for as many, whether they are there or not."""


class Bucket(NamedTuple):
    rows: int
    sequences: int
    longest: int
    """Rows of a sequence, at most."""

    @property
    def shorter(self) -> int:
        """What the longest sequence has more than, or another bucket would do."""
        return max((each for each in _LONGEST if each < self.longest), default=0)


class Buckets:
    """
    Args:
        most_rows: of a batch.
    """

    def __init__(self, most_rows: int) -> None:
        self._rows = _sizes(most_rows)

    def __iter__(self) -> Iterator[Bucket]:
        """All of them, those of few rows first."""
        for rows in self._rows:
            for longest in _levels(rows):
                yield Bucket(rows, _sequences(rows), longest)

    def of(self, rows: int, sequences: int, longest: int) -> Bucket | None:
        """The smallest that holds them; None where none does."""
        for size in self._rows[bisect_left(self._rows, rows) :]:
            if _sequences(size) >= sequences:
                level = next(each for each in _levels(size) if each >= longest)
                return Bucket(size, _sequences(size), level)
        return None


def _sizes(most: int) -> list[int]:
    sizes, base = [each for each in _FIRST if each < most], 1024
    while base < most:
        sizes += [s for n in range(_STEPS) if (s := base + base * n // _STEPS) < most]
        base *= 2
    return [*sizes, most]


def _sequences(rows: int) -> int:
    """Of 16 rows on average, or of a few rows each where it costs nothing."""
    return max(1, rows // 4 if rows <= 256 else max(64, rows // 16))


def _levels(rows: int) -> list[int]:
    return [*(each for each in _LONGEST if each < rows), rows]
