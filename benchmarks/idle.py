"""What a server takes that nobody asks anything: processor seconds of all its processes, by kind.

python -m benchmarks idle
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.watched import watched
from clients.chaos.processes import descendants
from server.process.installation import STUB

CALM_SECONDS = 60.0
SECONDS = 60.0
KINDS = ("watcher", "gateway", "forkservers", "ranks", "stubs", "others")
"""`others` are what else the watcher has started, but for tritonserver."""


def run() -> Iterator[dict[str, Any]]:
    """A record for each kind, for all of ours together, and for tritonserver itself."""
    with watched() as (watcher, _):
        time.sleep(CALM_SECONDS)
        before = processor_seconds(watcher)
        began = time.monotonic()
        time.sleep(SECONDS)
        after = processor_seconds(watcher)
        seconds = time.monotonic() - began
    used = {key: cpu - before.get(key, 0.0) for key, cpu in after.items()}
    ours = {key: cpu for key, cpu in used.items() if key[0] in KINDS}
    for kind in KINDS:
        yield _record(kind, {key: cpu for key, cpu in ours.items() if key[0] == kind}, seconds)
    yield _record("all of these", ours, seconds)
    yield _record("tritonserver", {k: c for k, c in used.items() if k not in ours}, seconds)


def _record(name: str, used: dict[tuple[str, int], float], seconds: float) -> dict[str, Any]:
    total = sum(used.values())
    return {
        "kind": name,
        "processes": len(used),
        "s": total,
        "% of a core": 100 * total / seconds,
        "most of one, %": 100 * max(used.values(), default=0.0) / seconds,
    }


def processor_seconds(watcher: int) -> dict[tuple[str, int], float]:
    """(kind, pid) -> processor seconds of it so far."""
    found = {}
    for pid, kind in processes(watcher).items():
        with suppress(psutil.Error):  # it has ended
            times = psutil.Process(pid).cpu_times()
            found[kind, pid] = times.user + times.system
    return found


def processes(watcher: int) -> dict[int, str]:
    """Kinds by pid, of all that the watcher has started and of itself."""
    found = {watcher: "watcher"}
    for pid in descendants(watcher):
        with suppress(psutil.Error):  # it has ended
            found[pid] = _kind(psutil.Process(pid))
    return found


def _kind(process: psutil.Process) -> str:
    if process.name().startswith("rank "):
        return "ranks"
    command = process.cmdline()
    for module, kind in (("python_mp.rank.forkserver", "forkservers"), ("gateway", "gateway")):
        if module in command:
            return kind
    return {STUB: "stubs", "tritonserver": "tritonserver"}.get(Path(command[0]).name, "others")
