"""How a leader learns on which cores Triton put the other instances: a file from each.

A passive instance does nothing else. The folder is private to the user and to this server.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...machine.temporary import temporary_folder
from ...machine.vital import vital
from ...model.config import ModelConfig
from ...model.errors import LoadError
from ...model.layout import Instance
from .cores import CpuSet

_SERIAL = "TRITON_PARALLEL_INSTANCE_LOADING"


def runtime_folder() -> Path:
    """`PYTHON_MP_RUNTIME_DIR`, or a folder of this tritonserver's (our parent) in the temp folder.

    Raises:
        LoadError: it belongs to somebody else or others may enter.
    """
    name = os.environ.get("PYTHON_MP_RUNTIME_DIR")
    folder = Path(name or temporary_folder() / f"python_mp-{os.getuid()}-{os.getppid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise LoadError(f"the run-time folder {folder} cannot be made: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):  # Whoever made a link may turn it elsewhere.
        raise LoadError(f"the run-time folder {folder} is a link; it must be a folder of ours")
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise LoadError(f"the run-time folder {folder} must be ours alone: remove it")
    return folder


class Presence:
    """The files of one model version's instances, `MODEL.VERSION.INSTANCE.DEVICE.PID.json`. A newer
    load of the same instance has a process, and so a file, of its own."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._folder = folder
        self._prefix = f"{config.name}.{config.version}."
        self._seconds = config.parameters.start_timeout_seconds

    def announce(self, instance: Instance) -> None:
        """Raises LoadError where nothing can be written."""
        path = self._path(instance)
        draft = path.with_suffix(".draft")
        state = {"at": time.monotonic(), "cpus": sorted(os.sched_getaffinity(0))}
        try:
            draft.write_text(json.dumps(state))
            draft.rename(path)
        except OSError as error:
            raise LoadError(f"{path} cannot be written: {error.strerror}") from None

    def withdraw(self, instance: Instance) -> None:
        with suppress(OSError):
            self._path(instance).unlink()

    def gather(self, instances: Iterable[Instance]) -> list[CpuSet]:
        """The cores of each instance, in order; waits for those still loading.

        Raises:
            LoadError: one did not come.
        """
        instances = list(instances)
        if len(instances) > 1 and os.environ.get(_SERIAL) == "0":
            raise LoadError(f"{_SERIAL}=0 loads instances one by one, but they need each other")
        deadline = time.monotonic() + self._seconds
        return [self._wait(instance, deadline) for instance in instances]

    def _wait(self, instance: Instance, deadline: float) -> CpuSet:
        while time.monotonic() < deadline:
            if said := self._said_by(instance):
                return tuple(max(said, key=lambda each: each["at"])["cpus"])
            time.sleep(0.01)
        raise LoadError(f"instance {instance.name} did not load within {self._seconds} s")

    def _said_by(self, instance: Instance) -> list[dict[str, Any]]:
        """By each of its processes that lives; there are two during a reload."""
        said = []
        with suppress(OSError, ValueError):  # Something has gone, or will come.
            for path in self._folder.iterdir():
                head, _, pid = path.stem.rpartition(".")
                if head == self._name(instance) and path.suffix == ".json" and _lives(int(pid)):
                    said.append(json.loads(path.read_text()))
        return said

    def _path(self, instance: Instance) -> Path:
        return self._folder / f"{self._name(instance)}.{os.getpid()}.json"

    def _name(self, instance: Instance) -> str:
        return f"{self._prefix}{instance.name}.{instance.device}"


def _lives(pid: int) -> bool:
    return vital(pid).state not in "ZX"
