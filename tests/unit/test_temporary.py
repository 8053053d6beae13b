"""Temporary files lie where they are meant to, and nowhere else."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from python_mp.machine.temporary import temporary_folder
from server.process.installation import PROJECT

PRODUCT = ("server", "backends", "build_scripts", "clients")
MAKERS = {"TemporaryDirectory", "TemporaryFile", "NamedTemporaryFile", "mkdtemp", "mkstemp"}


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    assert temporary_folder() == Path("/tmp")
    monkeypatch.setenv("TMP", "/scratch")
    assert temporary_folder() == Path("/scratch")
    monkeypatch.setenv("TMPDIR", "")
    assert temporary_folder() == Path("/scratch")
    monkeypatch.setenv("TMPDIR", "here")
    assert temporary_folder() == Path.cwd() / "here"


def test_no_other_folder_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError), tempfile.TemporaryDirectory(dir=temporary_folder()):
        pass
    assert list(tmp_path.iterdir()) == []


def choices(file: Path) -> Iterator[str]:
    """Where a file leaves the choice to Python."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            has_place = any(keyword.arg == "dir" for keyword in node.keywords)
            if name == "gettempdir" or (name in MAKERS and not has_place):
                yield f"{file.relative_to(PROJECT)}, line {node.lineno}"


def test_the_choice_is_nowhere_pythons() -> None:
    files = [file for part in PRODUCT for file in (PROJECT / part).rglob("*.py")]
    assert len(files) > 100
    assert [place for file in files for place in choices(file)] == []
