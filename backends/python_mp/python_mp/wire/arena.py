"""Where a batch's tensors lie: memory that the front shares with its ranks.

One anonymous memory file (memfd), so nothing can be left in /dev/shm. It has a slot for each batch
in flight; pages exist only where something was written.

    | slot 0 inputs | slot 0 outputs | slot 1 inputs | slot 1 outputs | ...     each `half` bytes

The front writes a batch's inputs once and every rank maps them. The answering rank (first of the
last stage) writes the outputs.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Mapping

import numpy as np

from ..model.errors import InvalidInput
from ..model.request import Array
from .message import Placed

ALIGN = 64


class Arena:
    """The slots. `half` is the most bytes that the inputs, or the outputs, of a batch may take."""

    def __init__(self, fd: int, slots: int, half: int) -> None:
        self.fd = fd
        self._half = half
        self._memory = np.frombuffer(mmap.mmap(fd, 2 * half * slots), np.uint8)

    @classmethod
    def create(cls, slots: int, half: int) -> Arena:
        half = -(-half // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = os.memfd_create("python_mp-arena", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, 2 * half * slots)
            return cls(fd, slots, half)
        except (OSError, ValueError, OverflowError):
            os.close(fd)
            raise

    @property
    def half(self) -> int:
        return self._half

    def write_inputs(self, slot: int, tensors: Mapping[str, list[Array]]) -> dict[str, Placed]:
        """Copies each tensor's parts end to end into the slot.

        Raises:
            InvalidInput: they do not fit.
        """
        return self._write(2 * slot, tensors.items())

    def write_outputs(self, slot: int, tensors: Mapping[str, Array]) -> dict[str, Placed]:
        """A scalar counts as one row."""
        rows = ((name, [np.atleast_1d(array)]) for name, array in tensors.items())
        return self._write(2 * slot + 1, rows)

    def read_inputs(self, slot: int, tensors: Mapping[str, Placed]) -> dict[str, Array]:
        """Views, not copies."""
        return {name: self._view(2 * slot, place) for name, place in tensors.items()}

    def read_outputs(self, slot: int, tensors: Mapping[str, Placed]) -> dict[str, Array]:
        return {name: self._view(2 * slot + 1, place) for name, place in tensors.items()}

    def input_bytes(self, slot: int, tensors: Mapping[str, Placed]) -> memoryview:
        """The slot's inputs from the first one to the last of these; may be written to.

        Raises:
            InvalidInput: there is no such slot, or they do not lie in it.
        """
        return self._used(2 * slot, tensors)

    def output_bytes(self, slot: int, tensors: Mapping[str, Placed]) -> memoryview:
        """As `input_bytes`."""
        return self._used(2 * slot + 1, tensors)

    def close(self) -> None:
        """The mapping itself goes with its last view."""
        os.close(self.fd)

    def _write(self, index: int, tensors: Iterable[tuple[str, list[Array]]]) -> dict[str, Placed]:
        placed, offset = {}, 0
        for name, parts in tensors:
            first = parts[0]
            shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
            place = Placed(first.dtype, shape, offset)
            offset += sum(part.nbytes for part in parts)
            if offset > self._half:
                raise InvalidInput(f"a batch's tensors take more than max_batch_bytes {self._half}")
            np.concatenate(parts, out=self._view(index, place))
            offset = -(-offset // ALIGN) * ALIGN
            placed[name] = place
        return placed

    def _used(self, index: int, tensors: Mapping[str, Placed]) -> memoryview:
        end = max((place.end for place in tensors.values()), default=0)
        sound = all(
            place.offset >= 0 and min(place.shape, default=0) >= 0 for place in tensors.values()
        )
        start = index * self._half
        if not sound or end > self._half or not 0 <= start < len(self._memory):
            raise InvalidInput("tensors are said to lie outside of their slot")
        return self._memory[start : start + end].data

    def _view(self, index: int, place: Placed) -> Array:
        start = index * self._half + place.offset
        size = place.dtype.itemsize * math.prod(place.shape)
        return self._memory[start : start + size].view(place.dtype).reshape(place.shape)
