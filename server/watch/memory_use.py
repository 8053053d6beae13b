"""How much memory there is and how much of it is taken, where Linux would kill for it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from server.process.run import SEGMENTS

# By the file of the limit, cgroup v2 and v1: what of memory.stat cannot be dropped. The page cache
# can, so it is no pressure.
HELD = {
    "memory.max": ("anon", "shmem"),
    "memory.limit_in_bytes": ("total_rss", "total_shmem"),
}


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    used: int
    limit: int


def memory(root: Path = Path("/")) -> Memory:
    """Of the innermost thing with a limit: the container (its cgroup), else the machine.

    What processes hold, shared memory included, without caches that the kernel would give back.

    Args:
        root: where proc and sys lie.
    """
    machine = _fields(root / "proc/meminfo")
    total = 1024 * machine["MemTotal"]
    limits = [each for each in _limits(root) if each[0] < total]
    if not limits:
        return Memory(total - 1024 * machine["MemAvailable"], total)
    limit, file = min(limits)
    stat = _fields(file.with_name("memory.stat"))
    return Memory(sum(stat.get(name, 0) for name in HELD[file.name]), limit)


def shared_memory(folder: Path = SEGMENTS) -> Memory:
    """Of the file system that Triton's segments lie in; a container has one of its own."""
    found = os.statvfs(folder)
    used = found.f_blocks - found.f_bfree
    return Memory(used * found.f_frsize, found.f_blocks * found.f_frsize)


def _limits(root: Path) -> Iterator[tuple[int, Path]]:
    """Of this process's cgroup and those around it, as far as they can be seen from here."""
    top = root / "sys/fs/cgroup"
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, name = top, "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = top / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = mount / path.lstrip("/")  # in a container without a namespace it is not there
        for folder in (own, *own.parents):
            if folder.is_relative_to(mount):
                with suppress(OSError, ValueError):  # no such file, or "max"
                    yield int((folder / name).read_text()), folder / name


def _fields(file: Path) -> dict[str, int]:
    lines = (line.replace(":", "").split() for line in file.read_text().splitlines())
    return {name: int(value) for name, value, *_ in lines}
