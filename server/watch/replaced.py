"""Stubs whose instances Triton has replaced."""

import os
import signal
from collections.abc import Collection
from contextlib import suppress


class Replaced:
    """Triton never unloads instances if one of them died with a request in hand: what of them still
    lives is killed after a while."""

    def __init__(self) -> None:
        self._ends: dict[int, float] = {}

    def __contains__(self, pid: int) -> bool:
        return pid in self._ends

    def __bool__(self) -> bool:
        return bool(self._ends)

    def add(self, pids: Collection[int], end: float) -> None:
        """They may live until `end`."""
        self._ends |= dict.fromkeys(pids, end)

    def kill(self, now: float, alive: Collection[int]) -> None:
        """Those whose time is up; forgets those that are not alive."""
        self._ends = {pid: end for pid, end in self._ends.items() if pid in alive}
        for pid, end in self._ends.items():
            if now > end:
                with suppress(ProcessLookupError):  # it just ended
                    os.kill(pid, signal.SIGKILL)
