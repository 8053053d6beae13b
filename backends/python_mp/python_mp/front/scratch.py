"""A folder for what the ranks of one generation put on disk: gone with them, however they end.

torch would unpack a compiled package of some 100 MB into /tmp for each rank, and leaves it there
when the rank is killed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .vital import vital


def make(runtime: Path, replica: int, generation: int) -> Path:
    """An empty folder inside `runtime`, which is private."""
    folder = runtime / f"ranks-{os.getpid()}-{replica}-{generation}"
    folder.mkdir(mode=0o700)
    return folder


def remove_leftovers(runtime: Path) -> None:
    """Those of fronts that were killed."""
    for folder in runtime.glob("ranks-*-*-*"):
        if vital(int(folder.name.split("-")[1])).state in "ZX":
            shutil.rmtree(folder, ignore_errors=True)
