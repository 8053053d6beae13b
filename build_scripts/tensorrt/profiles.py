"""The shapes a plan is built for: smallest, usual and largest, as TensorRT's profiles want them.

Sequences of unequal length lie in a rectangle [rows, width] for attention. One profile for all
would have to hold as many rows as there are tokens, each as wide as the longest sequence, and
TensorRT reserves memory for that. So there is a profile for each range of widths, and in each as
many rows as packing can give: any two rows together are fuller than one is wide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnx import ModelProto, ValueInfoProto

from build_scripts.errors import BuildError
from python_mp.sharding.packed import BINS

NARROWEST, FACTOR = 32, 4
RECTANGLES = BINS[:2]
Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Shape:
    """An input's smallest, usual and largest shape."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Profile = Mapping[str, Shape]
"""Shapes by input name."""


def profiles(model: ModelProto, sizes: Sizes, longest: int | None = None) -> list[Profile]:
    """Profiles for a rank's graph, narrow rectangles first; a single one without ragged inputs.

    Args:
        sizes: (min, opt, max) of the first dimension: tokens of ragged inputs, rows of others.
        longest: tokens of the longest sequence; by default all that a batch may have.

    Raises:
        BuildError: an input other than the rectangles is open in another dimension.
    """
    inputs = list(model.graph.input)
    if not any(value.name in RECTANGLES for value in inputs):
        return [{value.name: _first_open(value, sizes) for value in inputs}]
    edges = _edges(longest or sizes[2])
    return [_profile(inputs, sizes, low, high) for low, high in pairwise(edges)]


def _edges(longest: int) -> list[int]:
    edges = [0, NARROWEST]
    while edges[-1] < longest:
        edges.append(edges[-1] * FACTOR)
    return [*edges[:-1], longest]


def _profile(inputs: Sequence[ValueInfoProto], sizes: Sizes, low: int, high: int) -> Profile:
    """For rectangles wider than `low`, up to `high`."""
    _, usual, most = sizes
    most_rows = min(most, 2 * most // (low + 1) + 1)
    usual_rows = min(max(usual // high, 1), most_rows)
    rectangle = Shape((1, low + 1), (usual_rows, high), (most_rows, high))
    return {
        value.name: rectangle if value.name in RECTANGLES else _first_open(value, sizes)
        for value in inputs
    }


def _first_open(value: ValueInfoProto, sizes: Sizes) -> Shape:
    dims = value.type.tensor_type.shape.dim
    if [dim.HasField("dim_value") for dim in dims] != [False, *[True] * (len(dims) - 1)]:
        raise BuildError(
            f"Input '{value.name}' must be open in its first dimension and in no other; engine"
            " tensorrt cannot tell how large the others get."
        )
    fixed = tuple(dim.dim_value for dim in dims[1:])
    smallest, usual, largest = ((size, *fixed) for size in sizes)
    return Shape(smallest, usual, largest)
