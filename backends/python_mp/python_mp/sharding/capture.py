"""What a module computes for one batch, written down: calls of our kernels, and of torch for the
rest, with the memory that each reads and writes. `replay` makes the same calls for other batches,
without the module's Python, as CUDA graphs do on a GPU.

The batch that is captured has a number of rows that nothing else has, so that it is known where
rows stand in a shape.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from .native import kernels

_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_BY_WAY_OF_NUMBERS = {"is_nonzero", "where.default"}
"""Operators without these tags that call one which has them."""


class NotCapturable(Exception):
    """A batch of other numbers may be computed in another way; the message says why."""


@dataclass(frozen=True)
class View:
    """A tensor in memory that the captured batch has taken.

    Attributes:
        memory: which, in the order in which it was taken.
    """

    memory: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Pointer:
    """An address in such memory: so many bytes from its beginning."""

    memory: int
    offset: int


@dataclass(frozen=True)
class KernelCall:
    name: str
    arguments: tuple[Any, ...]

    def memories(self) -> Iterator[int]:
        yield from (each.memory for each in self.arguments if isinstance(each, Pointer))


@dataclass(frozen=True)
class TorchCall:
    """Of an operator, whose results go to `outputs`; none where it changes its arguments."""

    operator: Any
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    outputs: tuple[View, ...]

    def memories(self) -> Iterator[int]:
        leaves = tree_leaves((self.arguments, dict(self.named), self.outputs))
        yield from (each.memory for each in leaves if isinstance(each, View))


Call = KernelCall | TorchCall


@dataclass(frozen=True)
class Capture:
    """
    Attributes:
        rows: of the batch that was captured.
        sizes: bytes of each memory.
    """

    rows: int
    calls: list[Call]
    sizes: list[int]
    inputs: Mapping[str, View]
    result: View


_present: _Mode | None = None


@contextmanager
def capturing(rows: int, inputs: Mapping[str, Tensor]) -> Iterator[_Mode]:
    """Everything that is computed within is written down; at the end `finish` tells it.

    Args:
        inputs: what differs from batch to batch, beside what the kernels for pages are given.
    """
    global _present
    mode = _present = _Mode(rows, inputs)
    try:
        with mode:
            kernels.record(mode.noted)
            yield mode
    finally:
        kernels.record(None)
        _present = None


def collective(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`call(x)`, which changes x in place and cannot be seen otherwise."""
    if _present is None:
        return call(x)
    with _disable_current_modes():
        found = call(x)
    _present.noted.append((call, (x,), {}, ()))
    return found


def refuse_capture(why: str) -> None:
    """For what is computed in a way that another batch would not be computed in."""
    if _present is not None:
        _present.refuse(why)


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, rows: int, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows, self._inputs = rows, inputs
        self._refusal = ""
        self.noted: list[tuple[Any, ...]] = []
        """(kernel, arguments), by the kernels; (operator, arguments, named, outputs), by torch."""
        self._memories: dict[int, int] = {}
        """The number of each by its address."""
        self._kept: list[Tensor] = []
        """One in each, so that none is given back and taken again."""
        for each in inputs.values():
            self._take(each)

    def __torch_dispatch__(
        self, operator: Any, _: Any, arguments: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        named = named or {}
        if _looks_at_numbers(operator, arguments):
            self.refuse(f"it looks at numbers ({operator})")
        found = operator(*arguments, **named)
        outputs, given = _tensors(found), {_base(x) for x in _tensors((arguments, named))}
        is_new = [_base(x) not in given and self._take(x) for x in outputs]
        if operator._schema.is_mutable:
            self.noted.append((operator, arguments, named, ()))
        elif any(is_new) and "empty" not in operator.overloadpacket.__name__:
            self.noted.append((operator, arguments, named, tuple(outputs)))
        return found

    def refuse(self, why: str) -> None:
        self._refusal = why

    def finish(self, result: Tensor) -> Capture:
        """
        Args:
            result: what was computed for the batch.

        Raises:
            NotCapturable: it was not computed here, or by way of numbers.
        """
        if self._refusal:
            raise NotCapturable(self._refusal)
        return Capture(
            self._rows,
            [self._call(*each) for each in self.noted],
            [each.untyped_storage().nbytes() for each in self._kept],
            {name: self._known(each) for name, each in self._inputs.items()},
            self._known(result),
        )

    def _call(self, called: Any, arguments: tuple[Any, ...], *rest: Any) -> Call:
        if isinstance(called, str):
            return KernelCall(called, tuple(self._pointer(each) for each in arguments))
        named, outputs = rest
        given, by_name = tree_map(self._view, (arguments, named))
        return TorchCall(called, given, by_name, tuple(self._known(each) for each in outputs))

    def _pointer(self, value: Any) -> Any:
        """Of an argument of a kernel, where it is an address in memory of this batch."""
        at = bisect_right(self._bases, value) - 1 if type(value) is int else -1
        if at < 0:
            return value
        memory, offset = self._memories[self._bases[at]], value - self._bases[at]
        inside = offset < self._kept[memory].untyped_storage().nbytes()
        return Pointer(memory, offset) if inside else value

    @cached_property
    def _bases(self) -> list[int]:
        return sorted(self._memories)

    def _view(self, value: Any) -> Any:
        is_ours = isinstance(value, Tensor) and _base(value) in self._memories
        return self._known(value) if is_ours else value

    def _known(self, x: Tensor) -> View:
        if _base(x) not in self._memories:
            raise NotCapturable("it returns what it has not computed")
        memory = self._memories[_base(x)]
        return View(memory, x.dtype, tuple(x.shape), tuple(x.stride()), int(x.storage_offset()))

    def _take(self, x: Tensor) -> bool:
        """Whether its memory is new."""
        if not x.numel() or x.device.type != "cpu" or _base(x) in self._memories:
            return False
        self._memories[_base(x)] = len(self._kept)
        self._kept.append(x)
        return True


def _looks_at_numbers(operator: Any, arguments: tuple[Any, ...]) -> bool:
    """So that what follows may be otherwise in another batch."""
    packet = operator.overloadpacket
    if packet is torch.ops.aten.index:  # By numbers of rows it is as any other.
        return any(each.dtype in (torch.bool, torch.uint8) for each in _tensors(arguments[1:]))
    names = {packet.__name__, f"{packet.__name__}.{operator._overloadname}"}
    return bool(_TAGS.intersection(operator.tags) or _BY_WAY_OF_NUMBERS & names)


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def _base(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
