"""The stubs of a tritonserver: Triton starts one for each instance of a Python-based model, and
never again if it dies."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.installation import STUB


@dataclass(frozen=True)
class Stub:
    """What its command line says."""

    pid: int
    model: str
    version: int
    instance: str
    segment: str

    @property
    def group(self) -> str:
        """The instance group GROUP of the instances GROUP_0, GROUP_1, ..."""
        return self.instance.rpartition("_")[0]


def living(tritonserver: int) -> list[Stub]:
    """Its stubs that live; a zombie has no command line any more."""
    found = (parse(pid, _command(pid)) for pid in _children(tritonserver))
    return [stub for stub in found if stub is not None]


def zombies(tritonserver: int) -> int:
    """Children nobody waits for: Triton loses count of a stub that died with requests in hand."""
    return sum(not _command(pid) for pid in _children(tritonserver))


def missing(stubs: Iterable[Stub], version: int, config: Mapping[str, Any]) -> dict[str, bool]:
    """Instance groups of a model's version that have fewer stubs than instances; True for passive
    ones. Empty for a model without stubs, of a backend that is not Python."""
    if not is_python(config):
        return {}
    counts = Counter(stub.group for stub in stubs if stub.version == version)
    return {
        group["name"]: bool(group.get("passive"))
        for group in config.get("instance_group", [])
        if counts[group["name"]] < _instances(group)
    }


def parse(pid: int, command: list[str]) -> Stub | None:
    """The stub with this command line; None for anything else.

    STUB .../MODEL/VERSION/model.py SEGMENT SIZE GROWTH PARENT BACKEND HANDLE INSTANCE ...
    """
    if len(command) < 9 or Path(command[0]).name != STUB:
        return None
    version = Path(command[1]).parent
    if not version.name.isdecimal():
        return None
    return Stub(pid, version.parent.name, int(version.name), command[8], command[2])


def is_python(config: Mapping[str, Any]) -> bool:
    """Whether a model runs in stubs: Triton notes the source file of backends in Python."""
    return config.get("backend") == "python" or str(config.get("runtime", "")).endswith(".py")


def _instances(group: Mapping[str, Any]) -> int:
    gpus = group.get("gpus") or []
    return int(group.get("count", 1)) * max(1, len(gpus))


def _children(pid: int) -> Iterator[int]:
    """Those of all threads of the process."""
    with suppress(OSError):  # it ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                yield from map(int, (thread / "children").read_text().split())


def _command(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return []
