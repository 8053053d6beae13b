"""Whether a text computes the same alone and beside others. A build tries it with the weights:
where a model's rows see those of other texts (a convolution, a state, a position that counts on),
nothing else would show it but wrong numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ...model.errors import LoadError
from ...model.request import Array
from ..packed import Packed
from .arrangement import Rows
from .transformers import sentences

LENGTHS = (5, 4, 6)
"""Of the texts side by side. The second one's embeddings are no numbers: what sees it, is none."""
MIDDLE = slice(LENGTHS[0], LENGTHS[0] + LENGTHS[1])
LAST = slice(1, 2)
USUAL = 224
"""Pixels of a side that may have any number."""
Inputs = Mapping[str, Array]
WHOLE_DTYPES = (torch.float32, torch.float64)


class Isolation:
    """The last of some texts or images, alone and behind the others, on its way through the stages.

    Args:
        rows: how the model takes them.
        ranks: of all stages.
        image: channels, height and width.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        rows: Rows,
        device: torch.device,
        ranks: int = 1,
        image: Sequence[int] = (3, -1, -1),
    ) -> None:
        self._kind = f"a {config.model_type}" + (f" on {ranks} ranks" if ranks > 1 else "")
        self._device, self._is_packed = device, rows == "packed"
        self._hidden: tuple[Any, Any] = (None, None)
        if rows == "images":
            images = _images(image)
            self._together, self._alone, self._last = images, _rows(images, LAST), LAST
        else:
            ids = torch.randint(config.vocab_size // 2, config.vocab_size, (sum(LENGTHS),)).int()
            ids[MIDDLE] = _odd_ids(config)
            self._last = slice(sum(LENGTHS[:2]), None)
            self._together = _texts(ids, LENGTHS)
            self._alone = _texts(ids[self._last], LENGTHS[2:])

    @torch.inference_mode()
    def through(self, encoder: nn.Module) -> None:
        """The next stage's `Encoder`, of its first rank.

        Raises:
            LoadError: what comes out of it is not the same.
        """
        with sentences(self._kind):
            alone = encoder(Packed(self._alone, self._device), self._hidden[0])
            with self._poisoned(encoder):
                together = encoder(Packed(self._together, self._device), self._hidden[1])
        self._hidden = alone, together
        if isinstance(alone, Mapping):
            ((alone,), (together,)) = alone.values(), together.values()
        if not alone.isfinite().all():
            raise LoadError(
                f"{self._kind} computes what is no number: its later layers"
                " are given more than hidden states, or its weights are too large for the"
                " dtype; use pipeline_parallel_size 1 and float32"
            )
        if not _same(alone, together[self._last]) or not self._first_is_there(together):
            raise LoadError(
                f"{self._kind} does not compute the same for a text, or an image, alone and beside"
                " others: serve it as a module of your own, with max_batch_size 1"
            )

    def _first_is_there(self, together: Tensor) -> bool:
        return not self._is_packed or bool(together[: LENGTHS[0]].isfinite().all())

    @contextmanager
    def _poisoned(self, encoder: Any) -> Iterator[None]:
        if not self._is_packed or self._hidden[0] is not None:
            yield
            return

        def poison(_: object, __: object, rows: Tensor) -> Tensor:
            rows = rows.clone()
            rows[:, MIDDLE] = math.nan
            return rows

        handle = encoder.model.get_input_embeddings().register_forward_hook(poison)
        try:
            yield
        finally:
            handle.remove()


def _images(dims: Sequence[int]) -> Inputs:
    size = [USUAL if each < 0 else each for each in dims]
    return {"PIXEL_VALUES": torch.rand(2, *size).numpy()}


def _rows(inputs: Inputs, rows: slice) -> Inputs:
    return {name: array[rows] for name, array in inputs.items()}


def _odd_ids(config: PretrainedConfig) -> Tensor:
    """Those that some models count in a row, wherever they stand."""
    names = ("pad_token_id", "mask_token_id", "bos_token_id", "eos_token_id")
    found = [getattr(config, name, None) for name in names]
    inside = (each if isinstance(each, int) else 0 for each in found)
    return torch.tensor([each if 0 <= each < config.vocab_size else 0 for each in inside])


def _texts(ids: Tensor, lengths: Sequence[int]) -> Inputs:
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    return {"INPUT_IDS": ids.numpy(), "cu_seqlens": ends.numpy()}


def _same(one: Tensor, other: Tensor) -> bool:
    near = 1e-3 if one.dtype in WHOLE_DTYPES else 0.1
    apart = (one - other).abs().max()
    return bool(apart <= near * one.abs().max())
