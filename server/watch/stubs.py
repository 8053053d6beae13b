"""The stubs of a tritonserver: Triton starts one for each instance of a Python-based model, and
never again if it dies."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from python_mp.machine.vital import children, command
from server.process.installation import STUB
from server.watch.events import Events


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


class Roster:
    """The living stubs of one tritonserver. Their ends come as events; new ones are looked for in
    /proc, where tritonserver's many threads make that dear.

    Attributes:
        living: as of the last `look`.
    """

    def __init__(self, tritonserver: int, events: Events) -> None:
        self.living: list[Stub] = []
        self._dead: list[Stub] = []  # and not yet told
        self._tritonserver = tritonserver
        self._events = events
        self._searched = -math.inf

    def look(self, now: float, *, interval: float) -> list[Stub]:
        """The stubs that died since the last look.

        Args:
            now: in seconds.
            interval: search for new ones if the last search was that long ago.
        """
        before, self.living = self.living, [s for s in self.living if not self._has_ended(s)]
        for stub in set(before) - set(self.living):
            self._dead.append(stub)
            self._events.forget(stub.pid)
        if self._dead or now - self._searched >= interval:
            self._search()
            self._searched = now
        dead, self._dead = self._dead, []
        return dead

    def close(self) -> None:
        """Watch them no more."""
        for stub in self.living:
            self._events.forget(stub.pid)

    def _has_ended(self, stub: Stub) -> bool:
        return self._events.has_ended(stub.pid)

    def _search(self) -> None:
        known = set(self.living)
        for stub in living(self._tritonserver):
            if stub not in known:
                self._events.watch(stub.pid)
                self.living.append(stub)


def living(tritonserver: int) -> list[Stub]:
    """Its stubs that live; a zombie has no command line any more."""
    found = (parse(pid, command(pid)) for pid in children(tritonserver))
    return [stub for stub in found if stub is not None]


def zombies(tritonserver: int) -> int:
    """Children nobody waits for: Triton loses count of a stub that died with requests in hand."""
    return sum(not command(pid) for pid in children(tritonserver))


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


def parse(pid: int, line: list[str]) -> Stub | None:
    """The stub with this command line; None for anything else.

    STUB .../MODEL/VERSION/model.py SEGMENT SIZE GROWTH PARENT BACKEND HANDLE INSTANCE ...
    """
    if len(line) < 9 or Path(line[0]).name != STUB:
        return None
    version = Path(line[1]).parent
    if not version.name.isdecimal():
        return None
    return Stub(pid, version.parent.name, int(version.name), line[8], line[2])


def is_python(config: Mapping[str, Any]) -> bool:
    """Whether a model runs in stubs: Triton notes the source file of backends in Python."""
    return config.get("backend") == "python" or str(config.get("runtime", "")).endswith(".py")


def _instances(group: Mapping[str, Any]) -> int:
    gpus = group.get("gpus") or []
    return int(group.get("count", 1)) * max(1, len(gpus))
