"""What python_mp's fronts say of themselves."""

import json
import time
from collections.abc import Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

SAID = {"model", "version", "replica", "pid", "state", "reason"}
SETTLED_NS = 100_000_000


class Said:
    """What python_mp's fronts say of themselves: the status files in the folder of a run.

    They are written by python_mp/front/status.py, each whole, and removed at an orderly end only.
    """

    def __init__(self) -> None:
        self._all: list[dict[str, Any]] = []
        self._changed: int | None = None

    def read(self, run: Path) -> bool:
        """Read them if some were written or removed; False if not."""
        folder = run / "status"
        changed = folder.stat().st_mtime_ns if folder.exists() else 0
        if changed == self._changed:
            return False
        # Of two changes within a tick of the file system's clock the second one does not show.
        settled = time.time_ns() - changed > SETTLED_NS
        self._all = read_replicas(run)
        self._changed = changed if settled else None
        return True

    def of(self, alive: Container[int]) -> list[dict[str, Any]]:
        """Those whose stubs are `alive`; a reload has two of each replica for a moment."""
        latest = {_place(each): each for each in self._all if each["pid"] in alive}
        return [latest[place] for place in sorted(latest)]


def read_replicas(run: Path) -> list[dict[str, Any]]:
    """What all status files say, the latest last; files that are not whole say nothing."""
    said = []
    for file in (run / "status").glob("*.json"):
        with suppress(OSError, ValueError):  # its writer just ended, or could not write
            said.append(json.loads(file.read_text()))
    whole = [each for each in said if _is_whole(each)]
    return sorted(whole, key=lambda each: float(each.get("since", 0)))


def _place(said: Mapping[str, Any]) -> tuple[str, int, int]:
    return said["model"], said["version"], said["replica"]


def _is_whole(said: object) -> bool:
    return isinstance(said, dict) and said.keys() >= SAID
