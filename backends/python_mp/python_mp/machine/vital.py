"""What the kernel says of a process, by /proc.

By hand: a stub has no psutil, and that one looks at all processes to find a process's children.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
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


def children(pid: int) -> Iterator[int]:
    """Of all threads of the process; zombies too. None once it has ended."""
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                yield from map(int, (thread / "children").read_text().split())


def command(pid: int) -> list[str]:
    """Its command line; empty for a zombie, and for a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return []
