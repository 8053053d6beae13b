"""How much memory ranks and builds take, and what a build does that has too little."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from rich.progress import Progress

from benchmarks.texts import short_texts, token_ids
from build_scripts import artifact, job, outcome, room
from build_scripts.job import Job
from build_scripts.new.__main__ import main as new
from build_scripts.places import PROJECT
from python_mp.front.local import served
from python_mp.model.manifest import Manifest
from tests.support import memory
from tests.support.memory import LARGE, SMALL

HALF_A_GIGABYTE = 1 << 29
OF_ITS_OWN = 60 << 20
"""Bytes that a rank writes to beside weights: Python's and torch's."""


def folders(folder: Path, sizes: dict[str, int], engine: str = "torch") -> int:
    """Writes a checkpoint and what `new` makes of it, for two ranks; returns its bytes."""
    nbytes = memory.llama(folder / "checkpoint", sizes)
    said = ["--tensor-parallel-size=2", f"--repository={folder / 'models'}"]
    assert new(["big", str(folder / "checkpoint"), *said]) == 0
    recipe = folder / "models" / "big" / "recipe.toml"
    text = recipe.read_text().replace("samples = 200", "samples = 8")
    recipe.write_text(text.replace('engine = "torch"', f'engine = "{engine}"'))
    return nbytes


def built(made: Job) -> tuple[Manifest, str]:
    """What is published in the end, and what the build says of it."""
    shown = Console(file=io.StringIO(), width=200)
    with Progress(disable=True, console=Console(file=io.StringIO())) as progress:
        outcome.show([artifact.build(made, progress)], shown)
    newest = max(made.folder.glob("[0-9]*"))
    found = Manifest.read(newest)
    assert found
    assert isinstance(shown.file, io.StringIO)
    return found, shown.file.getvalue()


@pytest.mark.campaign
def test_what_does_not_fit_the_memory_is_published_unverified_and_a_rank_takes_its_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbytes = folders(tmp_path, SMALL)
    made = job.load("big_encoder", tmp_path / "models", workspace=tmp_path / "workspace")
    with monkeypatch.context() as little:
        little.setattr(room, "available", lambda: nbytes)
        manifest, said = built(made)
        assert built(made)[0] == manifest, "nothing has changed"
    assert manifest.accuracy["verified"] == "no"
    assert "not verified: the reference" in said
    assert "0.7 GB of memory" in said
    version = made.folder / "1"
    with served(made.served_from(version, tmp_path / "served"), tmp_path) as replica:
        for ids in token_ids(short_texts()[:8]):
            replica.ask(INPUT_IDS=ids).result()
        ranks = [
            each.pid
            for each in psutil.Process().children(recursive=True)
            if each.name().startswith("rank ")
        ]
        assert len(ranks) == 2
        forkserver = psutil.Process(ranks[0]).parent()
        assert forkserver
        assert forkserver.num_threads() == 1, "a fork would break others"
        for rank, pid in enumerate(ranks):
            file = version / f"rank{rank}.safetensors"
            weights = memory.mapped(pid, file.name)
            assert 0.9 <= weights / file.stat().st_size <= 1.1, "all of it, from the start"
            assert memory.rollup(pid)["Private_Dirty"] < OF_ITS_OWN
    manifest, said = built(made)
    assert manifest.accuracy["cosine_min"] > 0.9999
    assert "verified" not in said


# ONNX Runtime arranges weights anew, beside the file's pages.
OF_A_BUILD = {"torch": (1.3, 0.6), "onnxruntime": (1.8, 0.8)}
"""Of the checkpoint: all processes, a rank of two."""


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", OF_A_BUILD)
def test_a_build_takes_little_more_than_the_checkpoint(engine: str, tmp_path: Path) -> None:
    nbytes = folders(tmp_path, LARGE, engine)
    said = [f"--repository={tmp_path / 'models'}", f"--workspace={tmp_path / 'workspace'}"]
    command = [sys.executable, "-m", "build_scripts.build", "big", *said]
    with subprocess.Popen(command, cwd=PROJECT) as process, memory.watching(process.pid) as peak:
        assert process.wait() == 0
    print(f"{nbytes >> 20} MB: tree {peak.tree >> 20}, rank {peak.rank >> 20} MB; {peak.when}")
    tree, rank = OF_A_BUILD[engine]
    assert peak.tree <= tree * nbytes + HALF_A_GIGABYTE
    assert peak.rank <= rank * nbytes + HALF_A_GIGABYTE
