"""A folder for what the ranks of one generation put on disk: gone with them, however they end.

torch would unpack a compiled package of some 100 MB into /tmp for each rank, and leaves it there
when the rank is killed.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from ...machine.vital import vital

_OWNER = re.compile(r"ranks-(\d+)-\d+-\d+|(\d+)\.\d+|.*\.(\d+)\.(?:json|draft)")
"""The pid in names of what fronts put there: these folders, peers' sockets, files that say how an
instance or a replica is."""


def make(runtime: Path, replica: int, generation: int) -> Path:
    """An empty folder inside `runtime`, which is private."""
    folder = runtime / f"ranks-{os.getpid()}-{replica}-{generation}"
    folder.mkdir(mode=0o700)
    return folder


def remove(folder: Path) -> None:
    """The folder, and where torch has put what a link in it names."""
    for link in folder.glob("*/*"):
        if link.is_symlink() and (unpacked := link.resolve()).parent == Path("/tmp"):
            shutil.rmtree(unpacked, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(runtime: Path) -> None:
    """Everything of fronts that were killed."""
    for path in (*runtime.iterdir(), *runtime.glob("*/*")):
        owner = _OWNER.fullmatch(path.name)
        if owner and vital(int(owner[owner.lastindex or 0])).state in "ZX":
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        remove(path)
    else:
        with suppress(OSError):
            path.unlink()
