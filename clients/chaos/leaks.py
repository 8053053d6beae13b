"""What a server holds, to be compared before and after: processes, threads, descriptors, memory,
shared memory, files."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from clients.chaos.processes import ChaosError, agent_of, descendants, state
from clients.chaos.target import Status

SEGMENTS = Path("/dev/shm")
PARTS = ("watcher", "tritonserver", "stubs", "agents")
_FOLDER = "PYTHON_MP_RUNTIME_DIR"
_REPOSITORY = "--model-repository="
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
        """Of the server that /status describes.

        Raises:
            ChaosError: its processes are another user's, or one has just ended.
        """
        try:
            return cls._of(status)
        except psutil.AccessDenied as error:
            raise ChaosError(
                f"process {error.pid} is closed to us; run this as the server's user"
            ) from error
        except psutil.NoSuchProcess as error:
            raise ChaosError(f"process {error.pid} has ended") from error

    @classmethod
    def _of(cls, status: Status) -> "Usage":
        agents = agents_of(status)
        tree = [*own_tree(status.watcher), *(pid for each in agents for pid in own_tree(each))]
        folder = run_folder(status.server)
        segments = [each.stat() for each in SEGMENTS.glob(f"{folder.name}*")]
        files = [each.lstat() for each in folder.rglob("*") if not each.is_dir()]
        figures: dict[str, float] = {
            "processes": len(tree),
            "zombies": sum(state(pid) == psutil.STATUS_ZOMBIE for pid in tree),
            "segments": len(segments),
            "MiB of segments": _megabytes_of(segments),
            "files": len(files),
            "MiB of files": _megabytes_of(files),
        }
        stubs = [pid for pid in tree if is_stub(pid)]
        pids = [[status.watcher], [status.server] if status.server else [], stubs, agents]
        for part, those in zip(PARTS, pids, strict=True):
            for name, count in _COUNTS.items():
                figures[f"{name} of {part}"] = sum(count(psutil.Process(pid)) for pid in those)
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


def own_tree(pid: int) -> list[int]:
    return [pid, *descendants(pid)]


def agents_of(status: Status) -> list[int]:
    """Those on this machine that have ranks which serve."""
    ranks = [rank for model in status.models.values() for rank in model.ranks if rank.host]
    return sorted({agent for rank in ranks if (agent := agent_of(rank.pid, rank.host))})


def is_stub(pid: int) -> bool:
    with suppress(psutil.ZombieProcess):
        return "triton_python_backend_stub" in " ".join(psutil.Process(pid).cmdline())
    return False


def repository(server: int) -> Path:
    """Where the models of this tritonserver lie, by its command line."""
    process = psutil.Process(server)
    given = [each.partition("=")[2] for each in process.cmdline() if each.startswith(_REPOSITORY)]
    return Path(process.cwd()) / given[0]


def run_folder(server: int | None) -> Path:
    """The run's private folder; the names of its segments begin with that one's."""
    if (folder := psutil.Process(server).environ().get(_FOLDER)) is not None:
        return Path(folder)
    raise ChaosError("the environment of tritonserver names no folder of the run")


def _megabytes_of(files: Iterable[os.stat_result]) -> float:
    return sum(512 * each.st_blocks for each in files) / _MIB


def megabytes(pids: Sequence[int]) -> float:
    """Of memory, MiB."""
    return sum(_megabytes(psutil.Process(pid)) for pid in pids)


def _megabytes(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss) / _MIB


_COUNTS: dict[str, Callable[[psutil.Process], float]] = {
    "threads": psutil.Process.num_threads,
    "descriptors": psutil.Process.num_fds,
    "MiB": _megabytes,
}
