"""Sizes of batches that nobody has sent: for dims of -1, whose sizes config.pbtxt leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .config import TensorSpec

SMALLEST, STEP = 16, 8
"""Where nothing is said: multiples of 8, as networks want that halve an image several times; no two
alike, since a graph that is traced with equal ones would take them for the same."""


def sample_dims(spec: TensorSpec, said: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The input's dims, with what is said of it or a usual size for each -1.

    Raises:
        ValueError: what is said does not fit the input's dims.
    """
    if spec.name in said:
        dims = tuple(said[spec.name])
        if len(dims) != len(spec.dims) or any(
            want not in (-1, size) for want, size in zip(spec.dims, dims, strict=True)
        ):
            raise ValueError(
                f"shapes.samples: {spec.name} is {list(dims)}; in config.pbtxt it has dims"
                f" {list(spec.dims)}, where -1 may be any size"
            )
        return dims
    free = iter(range(SMALLEST, SMALLEST + STEP * len(spec.dims), STEP))
    return tuple(next(free) if dim < 0 else dim for dim in spec.dims)
