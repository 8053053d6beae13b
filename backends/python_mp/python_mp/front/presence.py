"""How a leader learns on which cores Triton put the other instances: a file from each.

A passive instance does nothing else. The folder is private to the user and to this server.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from ..config import ModelConfig
from ..errors import LoadError
from ..layout import Instance
from .cores import CpuSet

_WAIT_SECONDS = 30.0
_SERIAL = "TRITON_PARALLEL_INSTANCE_LOADING"


def runtime_folder() -> Path:
    """`PYTHON_MP_RUNTIME_DIR`, or a folder of this tritonserver's (our parent) in the temp folder.

    Raises:
        LoadError: it belongs to somebody else or others may enter.
    """
    name = os.environ.get("PYTHON_MP_RUNTIME_DIR")
    folder = Path(name or f"{tempfile.gettempdir()}/python_mp-{os.getuid()}-{os.getppid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise LoadError(f"the run-time folder {folder} cannot be made: {error.strerror}") from None
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise LoadError(f"the run-time folder {folder} must be ours alone: remove it")
    return folder


class Presence:
    """The files of one model version's instances."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._folder = folder
        self._prefix = f"{config.name}.{config.version}."

    def announce(self, instance: Instance) -> None:
        path = self._path(instance)
        draft = path.with_suffix(f".{os.getpid()}")
        state = {"pid": os.getpid(), "cpus": sorted(os.sched_getaffinity(0))}
        draft.write_text(json.dumps(state))
        draft.rename(path)

    def withdraw(self, instance: Instance) -> None:
        """Unless a newer load of the same instance has taken the place."""
        path = self._path(instance)
        if path.exists() and json.loads(path.read_text())["pid"] == os.getpid():
            path.unlink()

    def gather(self, instances: Iterable[Instance]) -> list[CpuSet]:
        """The cores of each instance, in order; waits for those still loading.

        Raises:
            LoadError: one did not come.
        """
        instances = list(instances)
        if len(instances) > 1 and os.environ.get(_SERIAL) == "0":
            raise LoadError(f"{_SERIAL}=0 loads instances one by one, but they need each other")
        deadline = time.monotonic() + _WAIT_SECONDS
        return [self._wait(instance, deadline) for instance in instances]

    def _wait(self, instance: Instance, deadline: float) -> CpuSet:
        path = self._path(instance)
        while time.monotonic() < deadline:
            if path.exists():
                state = json.loads(path.read_text())
                if Path(f"/proc/{state['pid']}").exists():
                    return tuple(state["cpus"])
            time.sleep(0.01)
        raise LoadError(f"instance {instance.name} did not load within {_WAIT_SECONDS:.0f} s")

    def _path(self, instance: Instance) -> Path:
        return self._folder / f"{self._prefix}{instance.name}.{instance.device}.json"
