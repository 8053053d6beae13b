"""Where a batch's sequences lie in packed rows, and what depends on nothing else."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property

import torch
from torch import Tensor

from ..model.errors import InvalidInput
from . import cuda_attention, row_attention
from .attention import Bias, Masking, attention
from .capture import refuse_capture


class Sequences:
    """Those of one input, or of several of the same lengths.

    Attributes:
        cu_seqlens: int32 [sequences + 1]: sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].

    Args:
        lengths: rows of each, where the host knows them already: to ask a GPU is to wait for it.
    """

    def __init__(self, cu_seqlens: Tensor, lengths: list[int] | None = None) -> None:
        self.cu_seqlens = cu_seqlens
        self._given = lengths

    @cached_property
    def lengths(self) -> list[int]:
        """Rows of each sequence."""
        if self._given is not None:
            return self._given
        lengths: list[int] = self.cu_seqlens.diff().tolist()
        return lengths

    @cached_property
    def longest(self) -> int:
        """Rows of the longest sequence, or a bound of them."""
        return max(self.lengths, default=0)

    @cached_property
    def rows(self) -> int:
        """Of all sequences, and of those behind them that belong to none."""
        return sum(self.lengths)

    @cached_property
    def positions(self) -> Tensor:
        """int32 [tokens]: each row's place in its sequence; 0 of one that belongs to none."""
        ends = self.cu_seqlens
        if ends.device.type == "cpu":
            before = torch.repeat_interleave(ends[:-1], ends.diff())
            return torch.arange(len(before), dtype=torch.int32) - before
        return _positions(ends, self.rows)

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
        if q.is_cuda and bias is None and sinks is None:
            packed = cuda_attention.attention(q, k, v, self.cu_seqlens, self.longest, masking)
            if packed is not None:
                return packed
        if bias is None and row_attention.takes(q, k, v):
            return row_attention.attend(q, k, v, self.cu_seqlens, masking, sinks)
        refuse_capture("attention goes from sequence to sequence")
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


class StaticSequences(Sequences):
    """Those of a batch whose lengths are not known before it comes, as a CUDA graph needs it.

    Args:
        cu_seqlens: is written anew for each batch; of fewer sequences, the last ones are empty.
        rows: of all tensors; those behind the last sequence belong to none.
        longest: rows of a sequence, at most.
    """

    def __init__(self, cu_seqlens: Tensor, rows: int, longest: int) -> None:
        super().__init__(cu_seqlens)
        self.rows, self.longest = rows, longest

    @cached_property
    def positions(self) -> Tensor:
        return _positions(self.cu_seqlens, self.rows)

    @cached_property
    def lengths(self) -> list[int]:
        raise NotStaticError("what is computed depends on lengths that the host must know")


class NotStaticError(Exception):
    """A module cannot be captured once for all batches."""


def _positions(ends: Tensor, rows: int) -> Tensor:
    """Without waiting for a GPU."""
    place = torch.arange(rows, dtype=torch.int32, device=ends.device)
    owners = torch.bucketize(place, ends[1:], right=True)
    return (place - ends[owners]).masked_fill_(place >= ends[-1], 0)


def refuse_rows(bad: Tensor, text: str) -> None:
    """`Sequences.refuse` where every sequence is one row."""
    if found := _bad(bad):
        raise InvalidInput(text, found)


def _bad(bad: Tensor) -> list[int]:
    rows = bad.flatten(1).any(1) if bad.dim() > 1 else bad
    found: list[int] = rows.nonzero().ravel().tolist()
    return found
