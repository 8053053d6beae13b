"""A rank on a GPU stays on the processor cores that are near it."""

from __future__ import annotations

import os
from pathlib import Path

DEVICES = Path("/sys/bus/pci/devices")


def stay_near(address: str, devices: Path = DEVICES) -> None:
    """Leaves this process's cores that are of another NUMA node than the device, if any are left.

    Args:
        address: on the PCI bus, "0000:1b:00.0".
    """
    try:
        near = _numbers((devices / address / "local_cpulist").read_text())
    except (OSError, ValueError):  # A virtual machine may know nothing of nodes.
        return
    if both := near & os.sched_getaffinity(0):
        os.sched_setaffinity(0, both)


def _numbers(text: str) -> set[int]:
    """Of "0-3,8"."""
    found = set[int]()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
