"""A mailbox in shared memory between a test and the process that it plays tricks on.

Its other side makes no system call but its naps, so that no fault can come between them.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

_FIELDS = np.dtype(
    [("order", "i4"), ("reply", "i4"), ("do", "S16"), ("error", "S8192"), ("counts", "f8", 8)]
)
NAP = 0.005
"""Seconds between two looks."""


def nap() -> None:
    """Where strace lets go in the middle of a fault, the call does not exist."""
    with suppress(OSError):
        time.sleep(NAP)


class Board:
    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_FIELDS.itemsize))
        self._memory = np.memmap(path, _FIELDS, "r+", shape=(1,))
        self.counts = self._memory["counts"][0]
        """Of requests asked, answered, refused, wrongly answered; then by replica when the last one
        that was answered had been asked, and whether the replica serves."""

    def ask(self, do: str) -> None:
        """Gives an order; one at a time."""
        self._memory["do"] = do
        self._memory["order"] += 1  # Last: the other side waits for it.

    def reply(self, seconds: float) -> str | None:
        """What went wrong with the last order; None if it is not done within `seconds`."""
        deadline = time.monotonic() + seconds
        while self._memory["reply"] != self._memory["order"]:
            if time.monotonic() > deadline:
                return None
            nap()
        return bytes(self._memory["error"][0]).decode(errors="replace")

    def orders(self) -> Iterator[str]:
        while True:
            if self._memory["reply"] != self._memory["order"]:
                yield self._memory["do"][0].decode()
            nap()

    def answer(self, error: str) -> None:
        self._memory["error"] = error.encode()
        self._memory["reply"] = self._memory["order"]
