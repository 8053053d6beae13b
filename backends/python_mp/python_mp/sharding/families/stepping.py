"""Batches on a CPU without the module's Python: one is captured when the module is loaded, and
replayed where that computes the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..capture import NotCapturable, capturing
from ..kv_pages import Pages
from ..replay import Replay

log = logging.getLogger(__name__)

ROWS = 61
"""Of the step that is captured, on all ranks the same: a prime, which hardly divides a size."""
LEARNT: Sequence[Sequence[int]] = ([1] * ROWS, [1], [9], [1, 23, 2, 16, 40])
"""Rows of each sequence of the first batches; those behind the captured one are checked."""
NEAR = 1e-4


class Stepping:
    """The first batch is captured, the next ones are computed in both ways and compared; the ranks
    of a stage go the same way in each.

    Args:
        most: rows of a batch that is replayed.
        agree: whether all ranks of the stage say so.
    """

    def __init__(self, module: nn.Module, most: int, agree: Callable[[bool], bool]) -> None:
        self._module, self._most, self._agree = module, most, agree
        self._replay: Replay | None = None
        self._unlearnt = len(LEARNT)

    @property
    def is_replayed(self) -> bool:
        return self._replay is not None and not self._unlearnt

    def step(
        self, inputs: Mapping[str, Tensor], pages: Pages, compute: Callable[[], Tensor]
    ) -> Tensor:
        """What `compute()` returns, by it or by what was captured.

        Args:
            inputs: all that it is a function of, beside the pages.
        """
        if self._unlearnt:
            return self._learn(inputs, pages, compute)
        if self._replay is None or _rows(inputs) > self._most:
            return compute()
        return self._replay.run(inputs, pages)

    def _learn(
        self, inputs: Mapping[str, Tensor], pages: Pages, compute: Callable[[], Tensor]
    ) -> Tensor:
        self._unlearnt -= 1
        if self._unlearnt == len(LEARNT) - 1:
            return self._capture(inputs, pages, compute)
        wanted = compute()
        if self._replay is None:
            return wanted
        self._keep(_is_near(self._replay, inputs, pages, wanted), "it differs")
        return wanted

    def _capture(
        self, inputs: Mapping[str, Tensor], pages: Pages, compute: Callable[[], Tensor]
    ) -> Tensor:
        why = _ambiguous(self._module)
        with capturing(_rows(inputs), inputs) as mode:
            found = compute()
        try:
            self._replay = Replay(mode.finish(found), max(self._most, *map(sum, LEARNT)))
        except NotCapturable as error:
            why = why or str(error)
        self._keep(not why, why)
        return found

    def _keep(self, is_right: bool, why: str) -> None:
        if not self._agree(is_right):
            self._replay = None
            log.info("batches are computed by the module itself: %s", why or "so another rank says")


def _rows(inputs: Mapping[str, Tensor]) -> int:
    return len(next(iter(inputs.values())))


def _is_near(replay: Replay, inputs: Mapping[str, Tensor], pages: Pages, wanted: Tensor) -> bool:
    try:
        found = replay.run(inputs, pages)
    except (ValueError, IndexError, RuntimeError):  # Some call does not take this batch.
        return False
    return torch.allclose(found, wanted, rtol=NEAR, atol=NEAR * float(wanted.abs().max()))


def _ambiguous(module: nn.Module) -> str:
    """Why rows cannot be told apart in this module's shapes; empty where they can."""
    weights = (*module.parameters(), *module.buffers())
    found = sorted({size for weight in weights for size in weight.shape if size % ROWS == 0})
    return f"a size of {found[0]} looks like rows" if found else ""
