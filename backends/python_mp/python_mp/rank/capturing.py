"""On a CPU: what a first batch computes is captured, so that later ones need no Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..model.request import Array

Forward = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def capture(
    forward: Forward,
    module: object,
    most: int,
    batch: Callable[[Sequence[int]], Mapping[str, Array]],
) -> None:
    """Where the module knows how.

    Args:
        most: rows of a batch that is replayed.
        batch: makes one of so many rows of each sequence.
    """
    if begin := getattr(module, "capture", None):
        for lengths in begin(most):
            forward(batch(lengths))
