"""A process that ends with the one that started it."""

from __future__ import annotations

import ctypes
import os
from signal import SIGKILL, Signals

_PR_SET_PDEATHSIG = 1


def die_with(parent: int, number: Signals = SIGKILL) -> None:
    """Has the kernel send this process a signal when its parent dies, or the parent's thread that
    started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)
