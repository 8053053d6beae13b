"""One vector for each sequence of packed rows, as sentence-transformers makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..model.errors import LoadError


def pool(states: Tensor, cu_seqlens: Tensor, modes: Sequence[str]) -> Tensor:
    """The vectors of all modes, one behind the other.

    Args:
        states: [tokens, hidden]; rows behind the last sequence count nowhere.
        cu_seqlens: int32 [sequences + 1].
        modes: of MODES.

    Returns:
        [sequences, hidden x modes], in float32; zeros for an empty sequence.

    Raises:
        LoadError: a mode is not known.
    """
    for mode in modes:
        if mode not in MODES:
            raise LoadError(f"pooling {mode!r} is not known; there are {', '.join(MODES)}")
    ends = cu_seqlens.long()
    if not len(states):
        return states.new_zeros(len(ends) - 1, states.shape[1] * len(modes), dtype=torch.float32)
    vectors = torch.cat([MODES[mode](states.float(), ends) for mode in modes], 1)
    return vectors.masked_fill_((ends.diff() == 0)[:, None], 0.0)  # And nothing waits for a GPU.


def _first(states: Tensor, ends: Tensor) -> Tensor:
    return states[ends[:-1].clamp(max=len(states) - 1)]


def _last(states: Tensor, ends: Tensor) -> Tensor:
    return states[(ends[1:] - 1).clamp(min=0)]


def _highest(states: Tensor, ends: Tensor) -> Tensor:
    found = states.new_full((len(ends), states.shape[1]), -torch.inf)
    index = _owners(states, ends)[:, None].expand_as(states)
    return found.scatter_reduce(0, index, states, "amax")[:-1]


def _mean(states: Tensor, ends: Tensor) -> Tensor:
    return _sum(states, ends) / ends.diff()[:, None]


def _sum_over_root(states: Tensor, ends: Tensor) -> Tensor:
    return _sum(states, ends) / ends.diff()[:, None].sqrt()


def _weighted(states: Tensor, ends: Tensor) -> Tensor:
    """Later tokens count more (SGPT, arXiv:2202.08904)."""
    owners = _owners(states, ends)
    weights = (torch.arange(len(states), device=states.device) - ends[owners] + 1)[:, None]
    lengths = ends.diff()[:, None]
    return _sum(states * weights, ends) / (lengths * (lengths + 1) / 2)


def _sum(states: Tensor, ends: Tensor) -> Tensor:
    zeros = states.new_zeros(len(ends), states.shape[1])
    return zeros.index_add_(0, _owners(states, ends), states)[:-1]


def _owners(states: Tensor, ends: Tensor) -> Tensor:
    """int64 [tokens]: the sequence of each row; one more where it belongs to none."""
    place = torch.arange(len(states), device=states.device)
    return torch.bucketize(place, ends[1:], right=True)


MODES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "lasttoken": _last,
    "max": _highest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _sum_over_root,
    "weightedmean": _weighted,
}
"""By sentence-transformers' names."""
