"""What the control groups around this process allow, in version 1 and 2 of their files.

A container sees its own as the root; elsewhere the one with the lowest limit may be any of those
around us.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
HELD = {
    "memory.max": ("anon", "shmem"),
    "memory.limit_in_bytes": ("total_rss", "total_shmem"),
}
"""By the file of the limit, version 2 and 1: what of memory.stat cannot be dropped. The page cache
can, so it is no pressure."""


def cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """Processors that may be used on average; None without a limit."""
    limits = []
    for folder in _folders("", cgroups, membership):
        with suppress(OSError, ValueError):  # No such file; or "max".
            limit, period = (folder / "cpu.max").read_text().split()
            limits.append(int(limit) / int(period))
    for folder in _folders("cpu", cgroups, membership):
        with suppress(OSError, ValueError):
            limit, period = ((folder / f"cpu.cfs_{k}_us").read_text() for k in ("quota", "period"))
            limits.append(int(limit) / int(period))
    return min((limit for limit in limits if limit > 0), default=None)  # -1 is no limit.


def memory(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes; None without a limit."""
    return min((limit for limit, _ in _memory_limits(cgroups, membership)), default=None)


def memory_held(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes that count towards the lowest limit and cannot be given back.

    Raises:
        OSError: it cannot be read.
        ValueError: there is no limit.
    """
    _, file = min(_memory_limits(cgroups, membership))
    lines = map(str.split, file.with_name("memory.stat").read_text().splitlines())
    stat = {name: int(value) for name, value in lines}
    return sum(stat.get(name, 0) for name in HELD[file.name])


def _memory_limits(cgroups: Path, membership: Path) -> Iterator[tuple[int, Path]]:
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _folders(controller, cgroups, membership):
            with suppress(OSError, ValueError):
                yield int((folder / name).read_text()), folder / name


def _folders(controller: str, cgroups: Path, membership: Path) -> Iterator[Path]:
    """Our group's in this hierarchy ("" is version 2) and those around it, as far as they show."""
    mount = cgroups / controller
    own = mount / _paths(membership).get(controller, "").lstrip("/")
    return (folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def _paths(membership: Path) -> dict[str, str]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return {}
    groups = (line.split(":", 2) for line in lines if line.count(":") >= 2)
    return {name: path for _, names, path in groups for name in names.split(",")}
