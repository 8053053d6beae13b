"""How much memory may still be taken: of the machine's, and of the container's around us."""

from __future__ import annotations

from pathlib import Path

from . import cgroup

MEMINFO = Path("/proc/meminfo")


def available(meminfo: Path = MEMINFO) -> int:
    """Bytes."""
    lines = (line.split() for line in meminfo.read_text().splitlines())
    free = next(int(words[1]) << 10 for words in lines if words[0] == "MemAvailable:")
    limit = cgroup.memory()
    return free if limit is None else max(0, min(free, limit - cgroup.memory_held()))
