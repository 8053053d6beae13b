"""The calls of a captured batch, made again for batches of other rows: see `capture`.

Calls of our kernels that follow each other are one program, which runs without Python. Memory is
one piece, of which a part is used again as soon as nobody reads it any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .capture import Call, Capture, KernelCall, NotCapturable, Pointer, TorchCall, View
from .combining import combined
from .kv_pages import ALIGNMENT, Pages
from .native import kernels

Part = Callable[[Pages], object]
MOST_BOUND = 512
"""Numbers of rows for which a replay is ready; each takes some kilobytes."""


class _Bound(NamedTuple):
    """All that is to be done for one number of rows."""

    inputs: Mapping[str, Tensor]
    parts: Sequence[Part]
    result: Tensor


class Replay:
    """
    Args:
        most: rows of a batch.

    Raises:
        NotCapturable: most of it would be torch's calls, as in the module itself.
    """

    def __init__(self, capture: Capture, most: int) -> None:
        self._rows, self._most = capture.rows, most
        self._capture = capture
        calls = combined(capture.calls, capture.rows, capture.result.memory)
        by_torch = sum(isinstance(call, TorchCall) for call in calls)
        if by_torch * 2 > len(capture.calls):  # Before some became one.
            raise NotCapturable(f"{by_torch} of {len(capture.calls)} calls are torch's own")
        self._offsets, nbytes = _placed(capture, calls, most)
        self._memory = torch.empty(nbytes, dtype=torch.uint8)
        self._parts = [
            self._program(some) if is_ours else list(some)
            for is_ours, some in groupby(calls, lambda call: isinstance(call, KernelCall))
        ]
        self._bound: dict[int, _Bound] = {}

    def run(self, inputs: Mapping[str, Tensor], pages: Pages) -> Tensor:
        """What the module computes of them; it is overwritten by the next call.

        Raises:
            ValueError, IndexError: the pages are not in the cache, or do not fit the rows.
        """
        rows = len(next(iter(inputs.values())))
        if rows > self._most:
            raise ValueError(f"{rows} rows; there is room for {self._most}")
        if rows not in self._bound and len(self._bound) >= MOST_BOUND:
            self._bound.clear()
        bound = self._bound.get(rows) or self._bound.setdefault(rows, self._bind(rows))
        for name, place in bound.inputs.items():
            place.copy_(inputs[name])
        for part in bound.parts:
            part(pages)
        return bound.result

    def _program(self, calls: Iterable[Call]) -> object:
        kernel_calls = [call for call in calls if isinstance(call, KernelCall)]
        placed = [(c.name, tuple(map(self._address, c.arguments))) for c in kernel_calls]
        return kernels.program(self._rows, placed)

    def _address(self, value: Any) -> Any:
        if not isinstance(value, Pointer):
            return value
        return self._memory.data_ptr() + self._offsets[value.memory] + value.offset

    def _bind(self, rows: int) -> _Bound:
        inputs = {name: self._tensor(rows, view) for name, view in self._capture.inputs.items()}
        return _Bound(
            inputs, list(self._bound_parts(rows)), self._tensor(rows, self._capture.result)
        )

    def _bound_parts(self, rows: int) -> Iterator[Part]:
        for part in self._parts:
            if isinstance(part, list):
                yield from (self._torch_call(rows, call) for call in part)
            else:
                yield partial(_run, part, rows)

    def _torch_call(self, rows: int, call: TorchCall) -> Part:
        def bind(value: Any) -> Any:
            if isinstance(value, View):
                return self._tensor(rows, value)
            return rows if type(value) is int and value == self._rows else value

        given, named = tree_map(bind, (call.arguments, dict(call.named)))
        outputs = [self._tensor(rows, view) for view in call.outputs]
        return partial(_call_torch, call.operator, given, named, outputs)

    def _tensor(self, rows: int, view: View) -> Tensor:
        captured = self._rows
        shape = [rows if size == captured else size for size in view.shape]
        strides = [_scaled(stride, captured, rows) for stride in view.strides]
        begin = self._offsets[view.memory] // view.dtype.itemsize + view.offset
        return self._memory.view(view.dtype).as_strided(shape, strides, begin)


def _run(program: object, rows: int, pages: Pages) -> None:
    places, table, contexts, starts = (each.data_ptr() for each in pages)
    sequences, threads = len(pages.cu_seqlens) - 1, torch.get_num_threads()
    kernels.run(program, rows, places, table, contexts, starts, sequences, pages.width, threads)


def _call_torch(operator: Any, given: Any, named: Any, outputs: Sequence[Tensor], _: Pages) -> None:
    found = operator(*given, **named)
    if outputs:  # Else it has changed its arguments.
        for output, value in zip(outputs, tree_leaves(found), strict=True):
            output.copy_(value)


def _placed(capture: Capture, calls: Sequence[Call], most: int) -> tuple[dict[int, int], int]:
    """Where each memory begins, and bytes in all. Each is taken by the first call that has it, and
    is free behind the last one."""
    last = {m: at for at, call in enumerate(calls) for m in call.memories()}
    kept = {view.memory for view in (*capture.inputs.values(), capture.result)}
    offsets: dict[int, int] = {}
    free: list[tuple[int, int]] = []  # (bytes, offset)
    end = 0

    def nbytes(memory: int) -> int:
        exact = _scaled(capture.sizes[memory], capture.rows, most)
        return -(-exact // ALIGNMENT) * ALIGNMENT

    def take(memory: int) -> None:
        nonlocal end
        if memory in offsets:
            return
        fitting = next((each for each in free if each[0] == nbytes(memory)), None)
        if fitting:
            free.remove(fitting)
            offsets[memory] = fitting[1]
            return
        offsets[memory], end = end, end + nbytes(memory)

    for memory in kept:
        take(memory)
    for at, call in enumerate(calls):
        mine = set(call.memories())
        for memory in mine:
            take(memory)
        free += [(nbytes(m), offsets[m]) for m in mine - kept if last[m] == at]
    return offsets, end


def _scaled(number: int, captured: int, rows: int) -> int:
    """Of bytes or a stride that spans rows, for so many."""
    return number if number % captured else number // captured * rows
