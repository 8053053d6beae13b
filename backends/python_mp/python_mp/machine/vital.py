"""What the kernel says of a process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class Vital(NamedTuple):
    """What the kernel says of a process; see proc(5), /proc/PID/stat."""

    state: str
    """R running, S sleeping, D in the kernel, T stopped, t traced, Z ended."""
    cpu_seconds: float
    """Of all its threads, so far."""


def vital(pid: int) -> Vital:
    """Of any process; one that is gone counts as ended.

    Raises:
        OSError: it cannot be said, for want of a descriptor or of memory.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return Vital("Z", 0.0)
    return Vital(fields[0], (int(fields[11]) + int(fields[12])) / _TICKS)
