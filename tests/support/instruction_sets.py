"""The kernels by each set of instructions that this machine has."""

from collections.abc import Iterator
from contextlib import contextmanager

from python_mp.sharding.native import kernels

SETS = range(len(kernels.instruction_sets()))


@contextmanager
def computed_by(which: int) -> Iterator[None]:
    """One of `SETS`; the best one, as always, afterwards."""
    kernels.choose(which)
    try:
        yield
    finally:
        kernels.choose(0)
