"""How much memory there is and how much of it is taken, where Linux would kill for it."""

from dataclasses import dataclass
from pathlib import Path

import psutil

from python_mp.machine import cgroup
from server.process.run import SEGMENTS


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    used: int
    limit: int


def memory(cgroups: Path = cgroup.CGROUPS, membership: Path = cgroup.MEMBERSHIP) -> Memory:
    """Of the innermost thing with a limit: the container (its cgroup), else the machine.

    What processes hold, shared memory included, without caches that the kernel would give back.
    """
    machine = psutil.virtual_memory()
    limit = cgroup.memory(cgroups, membership)
    if limit is None or limit >= machine.total:
        return Memory(machine.total - machine.available, machine.total)
    return Memory(cgroup.memory_held(cgroups, membership), limit)


def shared_memory(folder: Path = SEGMENTS) -> Memory:
    """Of the file system that Triton's segments lie in; a container has one of its own."""
    found = psutil.disk_usage(str(folder))
    return Memory(found.used, found.total)
