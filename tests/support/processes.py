"""Processes: those that a test starts, and what became of others."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "backends" / "python_mp")))}
"""Where tests and product are found; what a process of its own gets on top of ours."""


@contextmanager
def python(code: str | Path, *arguments: object, says: str = "") -> Iterator[subprocess.Popen[str]]:
    """Runs code or a file, from its first line on, which is `says`; kills it at the end."""
    program = [code] if isinstance(code, Path) else ["-c", code]
    with subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if says:
                assert process.stdout
                assert process.stdout.readline() == f"{says}\n"
            yield process
        finally:
            process.kill()


def rank_processes(front: int) -> dict[tuple[int, int], int]:
    """(replica, rank) -> pid of the ranks of the process `front`, by way of its forkserver."""
    found = {}
    for forkserver in children(front):
        for pid in children(forkserver):
            name, _, place = _read(Path(f"/proc/{pid}/comm")).decode().strip().partition(" ")
            if name == "rank":
                replica, rank = place.split(".")
                found[int(replica), int(rank)] = pid
    return found


def children(pid: int) -> list[int]:
    """Processes that any of its threads has started."""
    lists = Path("/proc", str(pid), "task").glob("*/children")
    return [int(child) for each in lists for child in _read(each).split()]


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits to be reaped does not."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return bool(fields) and fields[0] not in b"ZX"


def cpu_seconds(pid: int) -> float:
    """Of a process and the children that it has reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """For what nothing announces: asks until it holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.005)


def _read(path: Path) -> bytes:
    """Nothing of a process or thread that has ended."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
