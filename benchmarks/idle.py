"""What a server takes that nobody asks anything: processor seconds of all its processes, by kind.

python -m benchmarks idle
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from clients.chaos.processes import descendants
from server.endpoints import VARIABLES, Endpoints
from server.process.installation import STUB

CALM_SECONDS = 60.0
SECONDS = 60.0
START_SECONDS = 300.0
KINDS = ("watcher", "forkservers", "ranks", "stubs", "others")
"""`others` are what else the watcher has started, but for tritonserver."""
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def run() -> Iterator[dict[str, Any]]:
    """A record for each kind, for all of ours together, and for tritonserver itself."""
    with _server() as watcher:
        time.sleep(CALM_SECONDS)
        before = _processes(watcher)
        began = time.monotonic()
        time.sleep(SECONDS)
        after = _processes(watcher)
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


def _processes(watcher: int) -> dict[tuple[str, int], float]:
    """(kind, pid) -> processor seconds of it so far."""
    found = {}
    for pid in (watcher, *descendants(watcher)):
        with suppress(psutil.Error):  # it has ended
            process = psutil.Process(pid)
            times = process.cpu_times()
            kind = "watcher" if pid == watcher else _kind(process)
            found[kind, pid] = times.user + times.system
    return found


def _kind(process: psutil.Process) -> str:
    if process.name().startswith("rank "):
        return "ranks"
    command = process.cmdline()
    if "python_mp.rank.forkserver" in command:
        return "forkservers"
    return {STUB: "stubs", "tritonserver": "tritonserver"}.get(Path(command[0]).name, "others")


@contextmanager
def _server() -> Iterator[int]:
    """`python -m server`, with the models that it serves; the watcher's pid."""
    endpoints = Endpoints.free()
    ports = {variable: str(getattr(endpoints, name)) for name, variable in VARIABLES.items()}
    command = [sys.executable, "-m", "server"]
    with subprocess.Popen(
        command, env=os.environ | ports, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as server:
        try:
            _wait_until_ready(server, f"{endpoints.health_url}/ready")
            yield server.pid
        finally:
            server.terminate()
            server.wait(60)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), _NO_PROXY.open(url, timeout=5):
            return
        time.sleep(0.5)
    raise SystemExit("the server did not become ready; `python -m server` says why")
