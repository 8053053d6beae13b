"""The batch as a module sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from ..model.batch import CU_SEQLENS
from ..model.request import Array
from .bins import fill
from .kv_pages import Pages
from .rectangles import MOST_PADDING, Rectangle, in_rectangles, rectangles, rows
from .sequences import Sequences, refuse_rows

HIDDEN, HIDDEN_OUT = "hidden", "hidden_out"
"""Of a compiled graph: what the stage before handed over, what it hands on."""
BINS = ("gather", "segments", "scatter")
ROWS = ("row_tokens", "row_mask", "row_places")
"""Of a compiled graph whose attention knows no packed rows: a rectangle with a row a sequence,
int64 and bool [sequences, width], and each token's place in it, int64 [tokens]."""


class Packed:
    """A batch's tensors by name, on the rank's device, rows end to end: [tokens, ...] for ragged
    inputs, [sequences, ...] for others. Whoever gets one may work in it in place.

    Args:
        shared: other ranks read the same memory.
    """

    def __init__(
        self, inputs: Mapping[str, Array], device: torch.device, *, shared: bool = False
    ) -> None:
        self._device = device
        self._tensors = {name: torch.from_numpy(a).to(device) for name, a in inputs.items()}
        self.padded = 0  # Places of rectangles that no row was in.
        self._own = {} if shared and device.type == "cpu" else self._tensors

    @classmethod
    def placed(cls, tensors: dict[str, Tensor], sequences: dict[str, Sequences]) -> Self:
        """A batch whose tensors lie on the device already.

        Args:
            sequences: of each tensor of lengths, by its name.
        """
        return cls({}, next(iter(tensors.values())).device)._filled(tensors, sequences)

    def _filled(self, tensors: dict[str, Tensor], sequences: dict[str, Sequences]) -> Self:
        self._tensors.update(tensors)
        self._sequences = sequences
        return self

    def known(self) -> dict[str, Array]:
        """What follows from its tensors, and is asked for where the host would have to wait."""
        return {}

    def moved(self, tensors: dict[str, Tensor]) -> Packed:
        """The same batch elsewhere: `tensors` are its own, and those that are `known`."""
        return Packed.placed(tensors, self._lengths(tensors))

    def _lengths(self, tensors: Mapping[str, Tensor]) -> dict[str, Sequences]:
        return {key: Sequences(tensors[key], self.lengths_of(key)) for key in self.lengths_keys}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._own:
            self._own[name] = self._tensors[name].clone()
        return self._own[name]

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def of(self, name: str) -> Sequences:
        """Where the sequences of the ragged input `name` lie: those of one input may be of other
        lengths than those of another. `cu_seqlens`, `lengths`, `positions`, `attend` and `refuse`
        of the batch are those of the first one."""
        return self._sequences[self._keys.get(name, CU_SEQLENS)]

    @cached_property
    def _sequences(self) -> dict[str, Sequences]:
        return {key: Sequences(self[key]) for key in self.lengths_keys}

    @property
    def lengths_keys(self) -> list[str]:
        """Names of the tensors that say where sequences lie."""
        return [key for key in self._tensors if key.partition(":")[0] == CU_SEQLENS]

    def lengths_of(self, key: str) -> list[int]:
        """Rows of each sequence, by one of `lengths_keys`."""
        return self._sequences[key].lengths

    @cached_property
    def _keys(self) -> dict[str, str]:
        return {
            name: key
            for key in self._tensors
            if key.startswith(f"{CU_SEQLENS}:")
            for name in key.partition(":")[2].split("+")
        }

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 [sequences + 1]: sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1]. Only
        models with a ragged input have it, `lengths`, `positions` and `attend`."""
        return self[CU_SEQLENS]

    @property
    def lengths(self) -> list[int]:
        """Rows of each sequence."""
        return self._sequences[CU_SEQLENS].lengths

    @property
    def contexts(self) -> list[int]:
        """Rows of each sequence, with those that earlier batches had."""
        return self.lengths

    @property
    def positions(self) -> Tensor:
        """int32 [tokens]: each row's place in its sequence."""
        return self._sequences[CU_SEQLENS].positions

    @property
    def is_ragged(self) -> bool:
        """Whether its rows are those of sequences."""
        return CU_SEQLENS in self

    @property
    def pages(self) -> Pages | None:
        """What a captured module is told of the batch; None where it is not to be replayed."""
        return Pages.none(self.cu_seqlens)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        """Softmax attention of each row to the rows of its sequence: see `Sequences.attend`."""
        return self._sequences[CU_SEQLENS].attend(q, k, v, **how)

    def refuse(self, bad: Tensor, text: str) -> None:
        """For `check`: refuses the sequences with a row that is bad: see `Sequences.refuse`."""
        if CU_SEQLENS in self:
            self._sequences[CU_SEQLENS].refuse(bad, text)
        else:
            refuse_rows(bad, text)

    def in_rectangles(
        self, compute: Callable[[Rectangle], Tensor], most_padding: float = MOST_PADDING
    ) -> Tensor:
        """For attention that knows no packed rows: [tokens, ...] of what `compute` makes of
        rectangles of the batch's sequences, [sequences, width, ...].

        Args:
            most_padding: of a rectangle's width, that a sequence may lack.
        """

        def counted(each: Rectangle) -> Tensor:
            self.padded += each.mask.numel() - sum(self.lengths[n] for n in each.sequences)
            return compute(each)

        return in_rectangles(self.lengths, self._device, counted, most_padding)

    def through(
        self,
        graph: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
        names: Sequence[str],
        hidden: Tensor | None,
    ) -> dict[str, Tensor]:
        """What a compiled graph makes of the batch; where its attention needs a rectangle, of one
        part after another, so that each has little padding.

        Args:
            graph: outputs by name of its inputs, which have these names.
        """
        if ROWS[0] not in names or not any(self.lengths):
            return dict(graph(self.graph_inputs(names, hidden)))
        found: dict[str, Tensor] = {}
        ragged: dict[str, bool] = {}
        for each in rectangles(self.lengths, self._device):
            tokens, sequences = each.tokens[each.mask], each.sequences
            if not len(tokens):
                continue
            part = self._part(names, tokens, sequences)
            given = part.graph_inputs(names, None if hidden is None else hidden[tokens])
            for name, value in graph(given).items():
                if name not in found:  # Of the longest sequences, which are fewer than their rows.
                    ragged[name] = len(value) == len(tokens)
                    size = int(self.cu_seqlens[-1]) if ragged[name] else len(self.lengths)
                    found[name] = value.new_zeros(size, *value.shape[1:])
                found[name][tokens if ragged[name] else sequences] = value
            self.padded += part.padded
        return found

    def _part(self, names: Iterable[str], tokens: Tensor, sequences: list[int]) -> Packed:
        """These sequences alone, whose rows are `tokens`."""
        part, total = Packed({}, self._device), int(self.cu_seqlens[-1])
        for name in names:
            if name in self:
                value = self[name]
                part._tensors[name] = value[tokens if len(value) == total else sequences]
        lengths = torch.tensor([0, *(self.lengths[each] for each in sequences)])
        part._tensors[CU_SEQLENS] = lengths.cumsum(0).int().to(self._device)
        return part

    def graph_inputs(self, names: Iterable[str], hidden: Tensor | None) -> dict[str, Tensor]:
        """What a compiled graph asks for by these names: inputs of the model, `hidden`, or what
        says where the sequences lie."""
        return {name: self._graph_input(name, hidden) for name in names}

    def _graph_input(self, name: str, hidden: Tensor | None) -> Tensor:
        if name == HIDDEN:
            assert hidden is not None
            return hidden
        if name == "positions":
            return self.positions
        if name in ROWS:
            return self._rows[name]
        return self._bins[name] if name in BINS else self[name]

    @cached_property
    def _rows(self) -> dict[str, Tensor]:
        self.padded += max(self.lengths) * len(self.lengths) - sum(self.lengths)
        return {n: t.to(self._device) for n, t in zip(ROWS, rows(self.lengths), strict=True)}

    @cached_property
    def _bins(self) -> dict[str, Tensor]:
        arrays = zip(BINS, fill(self.lengths), strict=True)
        return {name: torch.from_numpy(array).to(self._device) for name, array in arrays}
