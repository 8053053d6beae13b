"""What each replica says of itself, for its peers and for the watcher: a file in a private folder.

A stub that died says nothing any more, so a file counts only while its process lives. What cannot
be written is written later; nobody stops serving for it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any
from zlib import crc32

from ..machine.net import Net
from ..machine.vital import vital
from ..model.config import ModelConfig
from ..model.manifest import Manifest

FOLDER = "status"


class State(StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    RESTARTING = "restarting"
    """Requests are kept, and computed by the next generation."""
    DOWN = "down"
    """Requests are refused."""


class Status:
    """One replica's file, `MODEL.VERSION.REPLICA.PID.json`; complete at any time. A newer load of
    the same replica has a process, and so a file, of its own."""

    def __init__(
        self, runtime: Path, config: ModelConfig, replica: int, net: Net | None = None
    ) -> None:
        self._runtime = runtime
        self._folder = runtime / FOLDER
        computes = (config.inputs, config.outputs, config.parameters, config.module_parameters)
        kind = crc32(repr(computes).encode())  # A reload may have changed it.
        self._model = {"model": config.name, "version": config.version, "kind": kind}
        self._replica = replica
        self._newest = config.newest_versions
        self._more = {"loaded": time.time(), "identity": identity(config)}
        self._generates = config.parameters.generates
        self.leaves = False
        """What waits is for its heirs alone."""
        name = f"{config.name}.{config.version}.{replica}.{os.getpid()}.json"
        self._path = self._folder / name
        self._net = net or Net()
        self._state: dict[str, Any] = {}
        self._written: dict[str, Any] = {}

    def write(
        self,
        state: State,
        *,
        reason: str = "",
        generation: int = 0,
        ranks: Sequence[tuple[int, str]] = (),
    ) -> None:
        """`reason` says why it does not serve; `ranks` are, in rank order, pids and where they
        are: the host's name, nothing for this one."""
        self._state = {
            **self._model,
            **self._more,
            "replica": self._replica,
            "pid": os.getpid(),
            "state": state,
            "reason": reason,
            "generation": generation,
            "restarts": max(0, generation - 1),
            "ranks": [pid for pid, _ in ranks],
            "hosts": [host for _, host in ranks],
            "since": time.time(),
        }
        self.refresh()

    def refresh(self) -> None:
        """Writes it, unless it stands there already. Call it now and then."""
        self._net.hold("supervisor", self._write)

    def remove(self) -> None:
        self._state = {}
        self._net.hold("supervisor", lambda: self._path.unlink(missing_ok=True))

    def _write(self) -> None:
        said = self._state | {"errors": self._net.said()}
        if not self._state or (said == self._written and self._path.exists()):
            return
        for folder in (self._runtime, self._folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        draft = self._path.with_suffix(".draft")
        try:
            draft.write_text(json.dumps(said))
            draft.rename(self._path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        self._written = said

    def peers(self) -> list[dict[str, Any]]:
        """What the other replicas of the same model and version say that live, and an older load
        of this one. Raises OSError where that cannot be read."""
        files = self._folder.glob("*.json")
        return [said for path in files if self._is_peer(said := _read(path))]

    def successors(self) -> list[dict[str, Any]]:
        """Replicas that serve and for which Triton unloads this one: of as many newer versions as
        it keeps, or a newer load of this one. Raises OSError."""
        mine, loaded = self._model, self._more["loaded"]
        serving = [
            said
            for said in map(_read, self._folder.glob("*.json"))
            if said.get("model") == mine["model"]
            and said["state"] == State.SERVING
            and vital(said["pid"]).state not in "ZX"
        ]
        newer = [said for said in serving if said["version"] > mine["version"]]
        if len({said["version"] for said in newer}) >= self._newest:
            return newer
        return [
            said
            for said in serving
            if (said["version"], said["replica"]) == (mine["version"], self._replica)
            and said["loaded"] > loaded
        ]

    def heirs(self) -> list[dict[str, Any]]:
        """Of these, those that go on with a stream as this one would. Raises OSError."""
        return [each for each in self.successors() if each["identity"] == self._more["identity"]]

    def helpers(self) -> Iterable[dict[str, Any]]:
        """Who computes what this one cannot; a newer version as soon as it is there, since the
        peers may leave first. Raises OSError."""
        heirs = self.heirs() if self._generates else []
        return heirs if self.leaves else [*self.serving_peers(), *heirs]

    def serving_peers(self) -> list[dict[str, Any]]:
        """Of these, the other replicas that serve now. Raises OSError."""
        others = [said for said in self.peers() if said["replica"] != self._replica]
        return [said for said in others if said["state"] == State.SERVING]

    def _is_peer(self, said: dict[str, Any]) -> bool:
        return (
            self._model.items() <= said.items()
            and (said["replica"], said["pid"]) != (self._replica, os.getpid())
            and vital(said["pid"]).state not in "ZX"
        )


def identity(config: ModelConfig) -> int:
    """Equal where two versions compute the same: their weights and dtype, and what the front knows
    of the task. Of one made by hand its parameters have to do."""
    built = Manifest.read(config.folder)
    of = (built.source, built.dtype, built.family) if built else config.module_parameters
    task = config.folder / "task.json"
    return crc32(repr((of, task.read_text() if task.is_file() else "")).encode())


def _read(path: Path) -> dict[str, Any]:
    said: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):
        said = json.loads(path.read_text())
    return said
