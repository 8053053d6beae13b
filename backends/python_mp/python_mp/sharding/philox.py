"""Random numbers without a state: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011). The same on every device, and whatever else is computed beside it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_WORD = (1 << 32) - 1


def uniform(seed: Tensor, position: Tensor) -> Tensor:
    """One number above 0 and below 1 for each seed and position, both int64 [n]: float64 [n], with
    52 random bits each."""
    counter = torch.stack([*_words(position), *_words(torch.zeros_like(position))], 1)
    high, low = philox(counter, torch.stack(_words(seed), 1))[:, :2].unbind(1)
    return ((high >> 6 << 26 | low >> 6).double() + 0.5) * 2.0**-52


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """32 random bits in each element: int64 [n, 4] of `counter` int64 [n, 4] and `key` int64
    [n, 2], whose elements hold 32 bits each."""
    multipliers, weyl = _constants(counter.device)
    even, odd = counter[:, ::2], counter[:, 1::2]
    for number in range(_ROUNDS):
        high, low = _products(even, multipliers)
        even = high.flip(1) ^ odd ^ (key + number * weyl & _WORD)
        odd = low.flip(1)
    return torch.stack([even, odd], 2).flatten(1)


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 [2] each: to bring them to a GPU is to wait for it."""
    return torch.tensor(_MULTIPLIERS, device=device), torch.tensor(_WEYL, device=device)


def _products(words: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits. In two steps, since int64 has no room for 64 bits and no
    sign."""
    upper, lower = words * (multipliers >> 16), words * (multipliers & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (lower + ((upper & 0xFFFF) << 16)) & _WORD


def _words(number: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of int64, the sign among them."""
    return number & _WORD, number >> 32 & _WORD
