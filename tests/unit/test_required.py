"""Nothing is left out silently: not by tests where REQUIRE_PROGRAMS is set, and not by .ci/run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.installation import PROJECT

SKIPS = {
    "condition": "@pytest.mark.skipif(True, reason='a lack')\ndef test_it(): pass",
    "call": "def test_it(): pytest.skip('a lack')",
    "module": "pytest.skip('a lack', allow_module_level=True)\ndef test_it(): pass",
    "import": "pytest.importorskip('nothing_of_this_name', reason='a lack')\ndef test_it(): pass",
}
OTHERS = {
    "passes": "def test_it(): pass",
    "fails": "@pytest.mark.xfail(strict=True)\ndef test_it(): assert 0",
    "hardware": "@pytest.mark.gpu\n@pytest.mark.skipif(True, reason='no GPU')\ndef test_it(): pass",
}


def run(folder: Path, sources: dict[str, str], required: str) -> subprocess.CompletedProcess[str]:
    """All of them in one run of pytest, each in a file of its own."""
    for kind, source in sources.items():
        (folder / f"test_{kind}.py").write_text(f"import pytest\n{source}\n")
    command = [sys.executable, "-m", "pytest", "-c", PROJECT / "pyproject.toml", "-p"]
    return subprocess.run(
        [*command, "tests.support.required", "--continue-on-collection-errors", folder],
        cwd=PROJECT,
        env=os.environ | {"REQUIRE_PROGRAMS": required, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )


def test_what_would_be_skipped_fails(tmp_path: Path) -> None:
    assert f"{len(SKIPS)} skipped" in run(tmp_path, SKIPS, "").stdout
    failed = run(tmp_path, SKIPS | OTHERS, "1")
    assert failed.returncode == 1, failed.stdout
    for kind in SKIPS:
        assert re.search(rf"(FAILED|ERROR) .*test_{kind}\.py", failed.stdout), failed.stdout
    assert not re.search(r"(FAILED|ERROR) .*test_(passes|fails|hardware)\.py", failed.stdout)
    assert failed.stdout.count("would be left out. Skipped: a lack") >= len(SKIPS)


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
