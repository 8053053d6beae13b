"""Packed rows as rectangles, for modules whose attention knows nothing else: sequences of about one
length side by side, the shorter ones padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.errors import InvalidInput

MOST_PADDING = 0.2
"""Of a rectangle's width, that its shortest sequence may lack."""
MOST_SCORES = 1 << 22
"""Of a rectangle's attention, for each head: a bound of its memory. A text of 2 048 tokens has as
many, and is alone."""


@dataclass(frozen=True)
class Rectangle:
    """Some of a batch's sequences.

    Attributes:
        sequences: their numbers in the batch.
        tokens: integers [sequences, width]: the packed row at each place; any where there is none.
        mask: bool [sequences, width]: where there is one.
    """

    sequences: list[int]
    tokens: Tensor
    mask: Tensor

    def take(self, packed: Tensor) -> Tensor:
        """[tokens, ...] -> [sequences, width, ...]."""
        return packed[self.tokens]

    def put(self, values: Tensor, packed: Tensor) -> None:
        """The other way round, into `packed`."""
        packed[self.tokens[self.mask]] = values[self.mask]


def rectangles(
    lengths: Sequence[int], device: torch.device, most_padding: float = MOST_PADDING
) -> Iterator[Rectangle]:
    """Few ones, with no more padding than that part of their width. No empty sequence is in any."""
    starts = torch.tensor([0, *lengths]).cumsum(0)
    order = sorted((n for n, each in enumerate(lengths) if each), key=lambda n: -lengths[n])
    while order:
        width = lengths[order[0]]
        most = max(1, MOST_SCORES // max(1, width * width))
        fitting = [each for each in order if lengths[each] >= (1 - most_padding) * width][:most]
        order = order[len(fitting) :]
        place = torch.arange(width)
        mask = place < torch.tensor([lengths[each] for each in fitting])[:, None]
        tokens = (starts[fitting][:, None] + place) * mask
        yield Rectangle(fitting, tokens.to(device), mask.to(device))


def rows(lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """All sequences in one rectangle, which is `tokens` and `mask`, and the place of each packed
    row in it, int64 [tokens]."""
    place, sizes = torch.arange(max(lengths)), torch.tensor(lengths)
    mask = place < sizes[:, None]
    starts = sizes.cumsum(0) - sizes
    return (starts[:, None] + place) * mask, mask, mask.flatten().nonzero().ravel()


def in_rectangles(
    lengths: Sequence[int],
    device: torch.device,
    compute: Callable[[Rectangle], Tensor],
    most_padding: float,
) -> Tensor:
    """[tokens, ...] of what `compute` makes of each rectangle, [sequences, width, ...]."""
    found: Tensor | None = None
    for each in rectangles(lengths, device, most_padding):
        values = compute(each)
        if found is None:
            found = values.new_empty(sum(lengths), *values.shape[2:])
        each.put(values, found)
    if found is None:
        raise InvalidInput("the sequences are empty, so that there is nothing to compute")
    return found
