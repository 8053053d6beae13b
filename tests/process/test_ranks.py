"""Work for every rank, in processes that end with the build."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from build_scripts import ranks
from build_scripts.errors import BuildError
from tests.support.processes import alive, python, until

PROGRAM = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from rich.progress import Progress
from build_scripts import ranks

def linger(_job, rank, out):
    (out / str(rank)).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    here = Path(__file__).parent
    job = SimpleNamespace(world_size=2, name="a model", output=here.joinpath)
    ranks.each(job, linger, Path(__file__).parent, Progress(), "lingers")
"""


def note(job: Any, rank: int, out: Path) -> None:
    if rank == job.fails:
        raise BuildError(f"rank {rank} cannot")
    (out / str(rank)).write_text("done")


@dataclass
class Made:
    """As much of a job as is needed."""

    folder: Path
    fails: int
    world_size: int = 3
    name: str = "a model"

    def output(self, _: str) -> Path:
        return self.folder


@pytest.mark.parametrize("weights", [1, ranks.SIDE_BY_SIDE + 1])
def test_every_rank_is_worked_on_and_what_one_raises_comes_out(
    tmp_path: Path, weights: int
) -> None:
    """Side by side, or with much weight one by one."""
    with (tmp_path / "rank0.safetensors").open("wb") as file:
        file.truncate(weights)
    job: Any = Made(tmp_path, fails=1)
    with pytest.raises(BuildError, match="rank 1 cannot"):
        ranks.each(job, note, tmp_path, Progress(disable=True), "notes")
    assert sorted(path.name for path in tmp_path.glob("[0-9]")) == ["0", "2"]


def test_a_killed_build_leaves_no_process(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    files = [tmp_path / "0", tmp_path / "1"]
    with python(program) as build:
        until(lambda: all(path.exists() and path.read_text() for path in files), 60)
        workers = [int(path.read_text()) for path in files]
        assert all(map(alive, workers))
        build.kill()
    until(lambda: not any(map(alive, workers)))
