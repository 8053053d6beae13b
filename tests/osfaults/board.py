"""A mailbox in shared memory between a test and the process that it plays tricks on.

Its other side makes no system call but its naps, so that no fault can come between them.
"""

import json
import mmap
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

SIZE = 1 << 16
_NUMBER = struct.Struct("I")
_COUNTS = struct.Struct("4I2d2I")
_ORDER, _REPLY, _STOP, _TRAFFIC = 0, 4, 8, 64
_TEXTS = {_ORDER: 256, _REPLY: SIZE // 2}
NAP = 0.005
"""Seconds between two looks."""


def nap() -> None:
    """Where strace lets go in the middle of a fault, the call does not exist."""
    with suppress(OSError):
        time.sleep(NAP)


class Board:
    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE)

    # -- orders, one at a time ----------------------------------------------------------------

    def ask(self, **order: Any) -> None:
        self._put(_ORDER, order)

    def reply(self, seconds: float) -> dict[str, Any] | None:
        """To the last order; None if it does not come within `seconds`."""
        deadline = time.monotonic() + seconds
        while self._number(_REPLY) != self._number(_ORDER):
            if time.monotonic() > deadline:
                return None
            nap()
        return self._text(_REPLY)

    def orders(self) -> Iterator[dict[str, Any]]:
        while True:
            if self._number(_REPLY) != self._number(_ORDER):
                yield self._text(_ORDER)
            nap()

    def answer(self, **reply: Any) -> None:
        self._put(_REPLY, reply)

    # -- traffic ----------------------------------------------------------------------------------

    def count(self, *counts: float) -> None:
        """Of requests asked, answered, refused, wrongly answered; then by replica when the last one
        that was answered had been asked, and whether the replica serves."""
        _COUNTS.pack_into(self._memory, _TRAFFIC, *counts)

    @property
    def counts(self) -> tuple[Any, ...]:
        return _COUNTS.unpack_from(self._memory, _TRAFFIC)

    def _number(self, where: int) -> int:
        return int(_NUMBER.unpack_from(self._memory, where)[0])

    def _text(self, where: int) -> dict[str, Any]:
        at = _TEXTS[where]
        size = _NUMBER.unpack_from(self._memory, at)[0]
        return dict(json.loads(self._memory[at + 4 : at + 4 + size]))

    def _put(self, where: int, said: dict[str, Any]) -> None:
        text, at = json.dumps(said).encode(), _TEXTS[where]
        _NUMBER.pack_into(self._memory, at, len(text))
        self._memory[at + 4 : at + 4 + len(text)] = text
        number = self._number(_ORDER) + (where == _ORDER)
        _NUMBER.pack_into(self._memory, where, number)  # Last: the other side waits for it.
