"""What each replica says of itself, for its peers and for the watcher: a file in a private folder.

A stub that died says nothing any more, so a file counts only while its process lives.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from .process import vital

FOLDER = "status"


class State(StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    RESTARTING = "restarting"
    """Requests are kept, and computed by the next generation."""
    DOWN = "down"
    """Requests are refused."""


class Status:
    """One replica's file, `MODEL.VERSION.REPLICA.json`; complete at any time."""

    def __init__(self, runtime: Path, config: ModelConfig, replica: int) -> None:
        self._folder = runtime / FOLDER
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._model = {"model": config.name, "version": config.version}
        self._replica = replica
        self._path = self._folder / f"{config.name}.{config.version}.{replica}.json"

    def write(
        self,
        state: State,
        *,
        reason: str = "",
        generation: int = 0,
        ranks: list[int] | None = None,
    ) -> None:
        """`reason` says why it does not serve; `ranks` are pids in rank order."""
        draft = self._path.with_suffix(f".{os.getpid()}")
        said = {
            **self._model,
            "replica": self._replica,
            "pid": os.getpid(),
            "state": state,
            "reason": reason,
            "generation": generation,
            "restarts": max(0, generation - 1),
            "ranks": ranks or [],
            "since": time.time(),
        }
        draft.write_text(json.dumps(said))
        draft.rename(self._path)

    def remove(self) -> None:
        """Unless a newer load of the same replica has taken the place."""
        if (said := _read(self._path)) and said["pid"] == os.getpid():
            self._path.unlink(missing_ok=True)

    def serving_peers(self) -> Iterator[dict[str, Any]]:
        """What the other replicas of the same model and version say that serve now."""
        for path in self._folder.glob("*.json"):
            said = _read(path)
            if (
                said
                and path != self._path
                and self._model.items() <= said.items()
                and said["state"] == State.SERVING
                and vital(said["pid"]).state not in "ZX"
            ):
                yield said


def _read(path: Path) -> dict[str, Any]:
    said: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        said = json.loads(path.read_text())
    return said
