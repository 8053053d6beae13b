"""Nothing is left out silently by .ci/run, and nothing hangs for ever."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from server.process.installation import PROJECT


@pytest.mark.parametrize("required", ["", "1"])
def test_ci_says_what_is_missing(tmp_path: Path, required: str) -> None:
    """On a machine with nothing but a shell, where nothing can be installed."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "cat", "dirname", "env", "mktemp", "sed", "tail"):
        (programs / name).symlink_to(str(shutil.which(name)))
    for name, does in {"id": "echo 1000", "make": 'echo "make $*"'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "project" / ".ci").mkdir(parents=True)
    script = shutil.copy(PROJECT / ".ci" / "run", tmp_path / "project" / ".ci" / "run")
    environment = {"PATH": str(programs), "REQUIRE_PROGRAMS": required}
    done = subprocess.run([script], env=environment, capture_output=True, text=True)
    assert done.returncode == (1 if required else 0), done.stderr
    assert done.stdout.split("\n")[:-1] == ([] if required else ["make check models", "make test"])
    for name in ("promtool", "docker", "docker compose", "a Docker engine that answers"):
        assert done.stderr.count(f"!!!   {name}\n") == 2, "at the beginning, and at the end"


def test_every_test_has_a_limit(request: pytest.FixtureRequest) -> None:
    """Of the run that this is: none is as long as what ends everything, or has none at all."""
    last = float(request.config.getini("faulthandler_timeout"))
    assert 0 < float(request.config.getini("timeout")) < last
    assert request.config.getini("faulthandler_exit_on_timeout")
    for item in request.session.items:
        marker = item.get_closest_marker("timeout")
        assert marker is None or 0 < marker.args[0] < last, item.nodeid
