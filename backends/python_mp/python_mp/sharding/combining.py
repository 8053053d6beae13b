"""Calls of torch that one of our kernels makes as well: numbers by themselves, along rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .capture import Call, KernelCall, Pointer, TorchCall, View
from .way import Way

aten = torch.ops.aten
STANDARDISE = "standardise"
_OF_TWO = {aten.add.Tensor: Way.ADD, aten.mul.Tensor: Way.TIMES}
_OF_ONE = {
    aten.silu.default: Way.SILU,
    aten.clone.default: Way.COPY,
    aten.contiguous.default: Way.COPY,
}
_IN_PLACE = {aten.add_.Tensor: Way.ADD, aten.mul_.Tensor: Way.TIMES}
_GELU = {"none": Way.GELU, "tanh": Way.GELU_TANH}


class _Rows(NamedTuple):
    """Rows of float32 that lie so many numbers apart."""

    begin: Pointer | int
    width: int
    stride: int


_NONE = _Rows(0, 0, 0)
_USUAL: list[Any] = [None, None, 1e-5]
"""Gain, bias and epsilon of a layer norm."""


def combined(calls: Sequence[Call], rows: int, result: int) -> list[Call]:
    """The same calls, with those of torch that can be made by our kernels as such.

    Args:
        result: the memory that is read in the end.
    """
    found = [_by_kernel(call, rows) if isinstance(call, TorchCall) else call for call in calls]
    uses = Counter([result, *(memory for call in found for memory in call.memories())])
    return list(_joined(found, uses))


def _by_kernel(call: TorchCall, rows: int) -> Call:
    given = call.arguments
    if call.operator is aten.layer_norm.default:
        return _layer_norm(call, rows) or call
    if call.operator in _IN_PLACE and not call.named and (y := _rows(given[0], rows)):
        return _of_two(_IN_PLACE[call.operator], call, rows, y) or call
    if len(call.outputs) != 1 or not (y := _rows(call.outputs[0], rows)):
        return call
    if (way := _of_one(call)) is not None and (a := _rows(given[0], rows)) and a.width == y.width:
        return _combine(way, rows, y, a)
    if call.operator in _OF_TWO and not call.named:
        return _of_two(_OF_TWO[call.operator], call, rows, y) or call
    return call


def _of_one(call: TorchCall) -> Way | None:
    if call.operator is aten.gelu.default:
        return _GELU.get(call.named.get("approximate", "none"))
    return _OF_ONE.get(call.operator)


def _layer_norm(call: TorchCall, rows: int) -> KernelCall | None:
    x, shape, *rest = call.arguments  # Without those that are as usual.
    gain, bias, epsilon = [*rest, *_USUAL[len(rest) :]][:3]
    y, a, by = _rows(call.outputs[0], rows), _rows(x, rows), _rows(gain, rows)
    added = _NONE if bias is None else _rows(bias, rows)
    if y is None or a is None or by is None or added is None or list(shape) != [by.width]:
        return None
    if not y.width == y.stride == a.width == a.stride == by.width:
        return None
    pointers = y.begin, a.begin, 0, by.begin, added.begin
    return KernelCall(STANDARDISE, (*pointers, rows, y.width, epsilon, 1))


def _of_two(way: Way, call: TorchCall, rows: int, y: _Rows) -> KernelCall | None:
    a, b = call.arguments
    first, second = _rows(a, rows), _rows(b, rows)
    if first is None or first.width != y.width:
        return None
    if way is Way.TIMES and isinstance(b, int | float):
        return _combine(Way.SCALE, rows, y, first, factor=float(b))
    if second is None or second.width != y.width:
        return None
    return _combine(way, rows, y, first, second)


def _combine(
    way: Way, rows: int, y: _Rows, a: _Rows, b: _Rows | None = None, factor: float = 0.0
) -> KernelCall:
    other = b or _NONE
    return KernelCall(
        "combine",
        (
            *(int(way), y.begin, a.begin, other.begin, rows, y.width),
            *(y.stride, a.stride, other.stride, factor, 1),
        ),
    )


def _joined(calls: Sequence[Call], uses: Mapping[int, int]) -> Iterator[Call]:
    """silu(a), and then its product with b, are one; so are a + b and then its layer norm."""
    after = iter([*calls[1:], None])
    skip = False
    for call, following in zip(calls, after, strict=True):
        if skip:
            skip = False
        elif joined := _silu_times(call, following, uses) or _added(call, following, uses):
            skip = True
            yield joined
        else:
            yield call


def _silu_times(call: Call, following: Call | None, uses: Mapping[int, int]) -> KernelCall | None:
    if not (_is(call, Way.SILU) and _is(following, Way.TIMES)):
        return None
    assert isinstance(call, KernelCall)
    assert isinstance(following, KernelCall)
    _, silu, a, *_ = call.arguments
    _, y, first, second, rows, width, y_stride, first_stride, second_stride, *rest = (
        following.arguments
    )
    if silu == second:
        first, second, second_stride = second, first, first_stride
    if silu != first or silu == second or uses[silu.memory] > 2:
        return None
    strides = y_stride, call.arguments[7], second_stride
    return KernelCall("combine", (int(Way.SILU_TIMES), y, a, second, rows, width, *strides, *rest))


def _added(call: Call, following: Call | None, uses: Mapping[int, int]) -> KernelCall | None:
    if not (_is(call, Way.ADD) and isinstance(following, KernelCall)):
        return None
    if following.name != STANDARDISE:
        return None
    assert isinstance(call, KernelCall)
    _, added, a, b, _, width, *strides, _, _ = call.arguments
    y, x, _, *rest = following.arguments
    if added != x or uses[x.memory] > 2 or set(strides) != {width}:
        return None
    return KernelCall(STANDARDISE, (y, a, b, *rest))


def _is(call: Call | None, way: Way) -> bool:
    return isinstance(call, KernelCall) and call.name == "combine" and call.arguments[0] == way


def _rows(x: Any, rows: int) -> _Rows | None:
    """None of what does not lie as rows, each without gaps."""
    if isinstance(x, Tensor):  # Of the module: the same for all rows.
        plain = x.dtype is torch.float32 and x.dim() == 1 and x.is_contiguous()
        return _Rows(x.data_ptr(), len(x), 0) if plain else None
    if not isinstance(x, View) or x.dtype is not torch.float32 or rows not in x.shape:
        return None
    at = x.shape.index(rows)
    if any(size != 1 for size in x.shape[:at]):
        return None
    width = 1
    for size, stride in reversed(list(zip(x.shape[at + 1 :], x.strides[at + 1 :], strict=True))):
        if size != 1 and stride != width:
            return None
        width *= size
    return _Rows(Pointer(x.memory, x.offset * x.dtype.itemsize), width, x.strides[at])
