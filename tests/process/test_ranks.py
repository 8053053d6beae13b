"""Work for every rank, in processes that end with the build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from build_scripts import ranks
from build_scripts.errors import BuildError
from tests.support.harness import alive, until

PROGRAM = """
import sys
from pathlib import Path
from types import SimpleNamespace
from rich.progress import Progress
from build_scripts import ranks
from tests.process.test_ranks import linger

if __name__ == "__main__":
    job = SimpleNamespace(world_size=2, name="a model")
    ranks.each(job, linger, Path(sys.argv[1]), Progress(), "lingers")
"""


def linger(_job: Any, rank: int, out: Path) -> None:
    (out / str(rank)).write_text(str(os.getpid()))
    time.sleep(600)


def note(job: Any, rank: int, out: Path) -> None:
    if rank == job.fails:
        raise BuildError(f"rank {rank} cannot")
    (out / str(rank)).write_text("done")


def run(folder: Path, fails: int) -> None:
    job: Any = SimpleNamespace(world_size=3, name="a model", fails=fails)
    ranks.each(job, note, folder, Progress(console=Console(quiet=True)), "notes")


def test_every_rank_is_worked_on(tmp_path: Path) -> None:
    run(tmp_path, fails=-1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_what_one_raises_comes_out(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="rank 1 cannot"):
        run(tmp_path, fails=1)


def test_a_killed_build_leaves_no_process(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    build = subprocess.Popen(
        [sys.executable, program, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    files = [tmp_path / "0", tmp_path / "1"]
    try:
        until(lambda: all(path.exists() and path.read_text() for path in files), 60)
        workers = [int(path.read_text()) for path in files]
        assert all(map(alive, workers))
    finally:
        build.send_signal(signal.SIGKILL)
        build.wait()
    until(lambda: not any(map(alive, workers)), 5)
