"""What the threads of ranks do, or did when they crashed: they write it into a file of memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from .process import Rank

_SECONDS, _FAR_SECONDS = 0.3, 1.0
_MOST_BYTES = 16 << 10


class Stacks:
    """Raises OSError where there is no descriptor to be had."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("python_mp-stacks", os.MFD_CLOEXEC)

    def read(self) -> str:
        return os.pread(self.fd, _MOST_BYTES, 0).decode(errors="replace").strip()

    def ask(self, ranks: Iterable[Rank]) -> None:
        """One after the other, so that they do not mix. They must be about to end."""
        for rank in ranks:
            where = f" on host {rank.host}" if rank.host else ""
            state = rank.vital().state
            os.write(self.fd, f"rank {rank.rank}{where}, {state}:\n".encode())
            if state in "TtZX":  # It will write nothing.
                continue
            before = os.fstat(self.fd).st_size
            rank.ask_for_stacks()
            deadline = time.monotonic() + (_FAR_SECONDS if rank.host else _SECONDS)
            while os.fstat(self.fd).st_size == before and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.005)  # A stack comes in several writes.

    def close(self) -> None:
        os.close(self.fd)
