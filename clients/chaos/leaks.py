"""What a server holds, to be compared before and after: processes, threads, descriptors, memory,
shared memory, files."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.chaos.processes import HouseError, descendants, stat
from clients.chaos.target import Status

SEGMENTS = Path("/dev/shm")
PARTS = ("watcher", "tritonserver", "stubs")
_FOLDER = b"PYTHON_MP_RUNTIME_DIR="
_REPOSITORY = "--model-repository="
_THREADS = 17  # field of /proc/PID/stat after the name
_MIB = 1 << 20


@dataclass(frozen=True)
class Bounds:
    """How much more is no leak. Allocators and pools of threads keep a little of a peak."""

    descriptors: int = 4
    threads: int = 4
    megabytes: int = 32

    def of(self, figure: str) -> int:
        return {
            "threads": self.threads,
            "descriptors": self.descriptors,
            "MiB": self.megabytes,
        }.get(figure.split()[0], 0)


@dataclass(frozen=True)
class Usage:
    """Figures by name, such as "descriptors of stubs". Memory is PSS: what is shared counts in
    parts. Ranks are only counted, for they are replaced with all that they had."""

    figures: Mapping[str, float]

    @classmethod
    def of(cls, status: Status) -> "Usage":
        """Of the server that /status describes."""
        tree = [status.watcher, *descendants(status.watcher)]
        folder = run_folder(status.server)
        segments = [each.stat() for each in SEGMENTS.glob(f"{folder.name}*")]
        files = [each.lstat() for each in folder.rglob("*") if not each.is_dir()]
        figures: dict[str, float] = {
            "processes": len(tree),
            "zombies": sum(stat(pid)[:1] == ["Z"] for pid in tree),
            "segments": len(segments),
            "MiB of segments": _megabytes_of(segments),
            "files": len(files),
            "MiB of files": _megabytes_of(files),
        }
        stubs = [pid for pid in tree if is_stub(pid)]
        pids = [[status.watcher], [status.server] if status.server else [], stubs]
        for part, those in zip(PARTS, pids, strict=True):
            figures |= {f"{name} of {part}": count(those) for name, count in _COUNTS.items()}
        return cls(figures)

    def growth(self, before: "Usage") -> dict[str, float]:
        return {name: value - before.figures[name] for name, value in self.figures.items()}

    def leaks(self, before: "Usage", bounds: Bounds) -> list[str]:
        """Where it grew beyond the bounds; one sentence each."""
        return [
            f"{name}: {before.figures[name]:.4g} before, {self.figures[name]:.4g} after"
            f" (no leak: {bounds.of(name)} more)"
            for name, more in self.growth(before).items()
            if more > bounds.of(name)
        ]


def is_stub(pid: int) -> bool:
    return b"triton_python_backend_stub" in Path(f"/proc/{pid}/cmdline").read_bytes()


def repository(server: int) -> Path:
    """Where the models of this tritonserver lie, by its command line."""
    options = Path(f"/proc/{server}/cmdline").read_bytes().decode().split("\0")
    given = [option.partition("=")[2] for option in options if option.startswith(_REPOSITORY)]
    return Path(f"/proc/{server}/cwd").resolve() / given[0]


def run_folder(server: int | None) -> Path:
    """The run's private folder; the names of its segments begin with that one's."""
    for variable in Path(f"/proc/{server}/environ").read_bytes().split(b"\0"):
        if variable.startswith(_FOLDER):
            return Path(os.fsdecode(variable.removeprefix(_FOLDER)))
    raise HouseError("the environment of tritonserver names no folder of the run")


def _megabytes_of(files: Iterable[os.stat_result]) -> float:
    return sum(512 * each.st_blocks for each in files) / _MIB


def _threads(pids: Sequence[int]) -> float:
    return sum(int(stat(pid)[_THREADS]) for pid in pids)


def _descriptors(pids: Sequence[int]) -> float:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def megabytes(pids: Sequence[int]) -> float:
    """Of memory, MiB."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in pids]
    lines = [line.split() for rollup in rollups for line in rollup]
    return sum(int(line[1]) for line in lines if line[0] == "Pss:") / 1024


_COUNTS: dict[str, Callable[[Sequence[int]], float]] = {
    "threads": _threads,
    "descriptors": _descriptors,
    "MiB": megabytes,
}
