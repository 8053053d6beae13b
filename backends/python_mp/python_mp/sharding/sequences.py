"""Where a batch's sequences lie in packed rows, and what depends on nothing else."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property

import torch
from torch import Tensor

from ..model.errors import InvalidInput
from .attention import Bias, Masking, attention


class Sequences:
    """Those of one input, or of several of the same lengths.

    Attributes:
        cu_seqlens: int32 [sequences + 1]: sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].
    """

    def __init__(self, cu_seqlens: Tensor) -> None:
        self.cu_seqlens = cu_seqlens

    @cached_property
    def lengths(self) -> list[int]:
        """Rows of each sequence."""
        lengths: list[int] = self.cu_seqlens.diff().tolist()
        return lengths

    @cached_property
    def positions(self) -> Tensor:
        """int32 [tokens]: each row's place in its sequence."""
        ends = self.cu_seqlens
        before = torch.repeat_interleave(ends[:-1], ends.diff())
        return torch.arange(len(before), dtype=torch.int32, device=ends.device) - before

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        bias: Bias | None = None,
    ) -> Tensor:
        """Softmax attention of each row to the rows of its sequence; see `attention`.

        Args:
            q: [tokens, heads, head size].
            k, v: the same, or with fewer heads, each for as many heads of q (grouped queries).
            causal, window, scale, softcap: see `Masking`.
            sinks: [heads], a score of nothing that each row sees as well.
            bias: of a sequence's length: float [heads, length, length], added to the scores.

        Returns:
            [tokens, heads x head size].
        """
        masking = Masking(causal, window, scale, softcap)
        return attention(q, k, v, self.lengths, masking, bias, sinks)

    def refuse(self, bad: Tensor, text: str) -> None:
        """For `check`: refuses the sequences with a row that is bad; all others are computed.

        Args:
            bad: bool [tokens, ...] or [sequences, ...].
            text: true of each of them, and for their clients' eyes.

        Raises:
            InvalidInput: there is one.
        """
        found = _bad(bad)
        if found and len(bad) != len(self.lengths):
            ends = self.cu_seqlens.tolist()[1:]
            found = sorted({bisect_right(ends, row) for row in found})
        if found:
            raise InvalidInput(text, found)


def refuse_rows(bad: Tensor, text: str) -> None:
    """`Sequences.refuse` where every sequence is one row."""
    if found := _bad(bad):
        raise InvalidInput(text, found)


def _bad(bad: Tensor) -> list[int]:
    rows = bad.flatten(1).any(1) if bad.dim() > 1 else bad
    found: list[int] = rows.nonzero().ravel().tolist()
    return found
