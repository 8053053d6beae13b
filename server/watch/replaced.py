"""Stubs whose instances Triton has replaced."""

import os
import signal
from collections.abc import Collection
from contextlib import suppress


class Replaced:
    """Triton never unloads instances if one of them died with a request in hand: what of them still
    lives is killed after a while."""

    def __init__(self) -> None:
        self._deadlines: dict[int, float] = {}

    def __contains__(self, pid: int) -> bool:
        return pid in self._deadlines

    def __bool__(self) -> bool:
        return bool(self._deadlines)

    def add(self, pids: Collection[int], deadline: float) -> None:
        """They may live until `deadline`."""
        self._deadlines |= dict.fromkeys(pids, deadline)

    def kill(self, now: float, alive: Collection[int]) -> None:
        """Those whose time is up; forgets those that are not alive."""
        self._deadlines = {
            pid: deadline for pid, deadline in self._deadlines.items() if pid in alive
        }
        for pid, deadline in self._deadlines.items():
            if now > deadline:
                with suppress(ProcessLookupError):  # it just ended
                    os.kill(pid, signal.SIGKILL)
