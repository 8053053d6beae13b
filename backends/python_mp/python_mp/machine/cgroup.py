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
    limits = []
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _folders(controller, cgroups, membership):
            with suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    return min(limits, default=None)


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
