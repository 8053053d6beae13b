"""The batch as a module sees it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from ..batch import CU_SEQLENS, Array


class Packed:
    """A batch's tensors by name, on the rank's device, rows end to end: [tokens, ...] for ragged
    inputs, [sequences, ...] for others."""

    def __init__(self, inputs: Mapping[str, Array], device: torch.device) -> None:
        self._device = device
        self._tensors = {name: torch.from_numpy(a).to(device) for name, a in inputs.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 [sequences + 1]: sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1]. Only
        models with a ragged input have it, `lengths` and `positions`."""
        return self._tensors[CU_SEQLENS]

    @cached_property
    def lengths(self) -> list[int]:
        """Rows of each sequence."""
        lengths: list[int] = self.cu_seqlens.diff().tolist()
        return lengths

    @cached_property
    def positions(self) -> Tensor:
        """int64 [tokens]: each row's place in its sequence."""
        ends = [torch.arange(length) for length in self.lengths]
        return torch.cat(ends).to(self._device)
