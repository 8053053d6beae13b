"""The chaos program against real servers: it finds nothing where nothing is wrong, and something
where something is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from build_scripts.publish import versions
from server.process.installation import PROJECT
from tests.support import repository
from tests.support.command import TOKEN, Command, command, variables
from tests.triton.test_generate import DECODER

CheckLeft = Callable[[tuple[str, Path]], None]
EMBED = ("embed", "embed_tokenizer", "embed_encoder", "embed_vectors")


def chaos(served: Command, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "clients.chaos", "--warm-up=2", "--interval=0.5", *options],
        cwd=PROJECT,
        env={**os.environ, **variables(served.endpoints), "ADMIN_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(served: Command, check_left: CheckLeft) -> None:
    """Drain it; nothing may stay."""
    run = served.run
    served.end(signal.SIGTERM)
    check_left(run)


@pytest.mark.campaign
def test_chaos_finds_nothing(tmp_path: Path, check_left: CheckLeft) -> None:
    models, written = tmp_path / "models", tmp_path / "report.json"
    repository.copy(models, *EMBED, "ranker")
    before = {model.name: versions(model) for model in models.iterdir()}
    faults = "--faults=kill,freeze,segfault,reload,cancel"
    with command(models) as served:
        served.wait_ready()
        options = (faults, "--seconds=15", f"--json={written}")
        with chaos(served, *options, "--freeze-seconds", "0.5", "2") as program:
            said, _ = program.communicate()
        end(served, check_left)
    assert program.returncode == 0, said
    report: dict[str, Any] = json.loads(written.read_text())
    assert report["findings"] == []
    assert all(kind["count"] for name, kind in report["kinds"].items() if name != "calm")
    assert report["requests"]["right"] > 50
    assert report["requests"]["cancelled"] > 0
    assert {model.name: versions(model) for model in models.iterdir()} == before


@pytest.mark.campaign
def test_chaos_finds_no_stream_that_is_not_as_in_calm(
    tmp_path: Path, check_left: CheckLeft
) -> None:
    written = tmp_path / "report.json"
    decoder = repository.add(tmp_path / "models", "decoder", DECODER)
    task = {"context_length": 1024, "vocabulary": 1 << 20, "eos_token_ids": [7]}
    (decoder / "1" / "task.json").write_text(json.dumps(task))
    options = "--model=decoder", "--tokens=300", "--seconds=30", f"--json={written}"
    faults = "--faults=kill,freeze,segfault,reload,cancel", "--freeze-seconds", "0.5", "12"
    with command(tmp_path / "models") as served:
        served.wait_ready()
        with chaos(served, *options, *faults) as program:
            said, _ = program.communicate()
        end(served, check_left)
    print(said)
    assert program.returncode == 0, said
    report: dict[str, Any] = json.loads(written.read_text())
    assert report["findings"] == []
    assert report["requests"]["right"] > 50


@pytest.mark.campaign
def test_chaos_finds_what_nobody_announced(tmp_path: Path, check_left: CheckLeft) -> None:
    """A stub is killed behind its back, so what its requests meet is out of place: they are lost
    with it, or refused until it is there again."""
    repository.copy(tmp_path / "models", "ranker")
    with command(tmp_path / "models", "--exit-timeout-secs=3") as served:
        served.wait_ready()
        options = "--faults=cancel", "--seconds=4", "--deadline=5"
        with chaos(served, *options) as program:
            assert program.stdout is not None
            assert "without faults" in program.stdout.readline()
            assert "answers again" in program.stdout.readline()  # What warms up does not count.
            os.kill(served.model("ranker")["replicas"][0]["pid"], signal.SIGKILL)
            said, _ = program.communicate()
        end(served, check_left)
    assert program.returncode == 1, said
    assert re.search("(failed|hung|refused) at ranker over", said), said
