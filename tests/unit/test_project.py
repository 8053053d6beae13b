"""What holds for the whole project: imports, temporary files, time limits, CI."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.process.installation import PROJECT

SERVED = ("backends", "server", "gateway", "clients", "model_repository")
OWN = {"python_mp", "server", "gateway", "clients"}
# By the name of the import, where a package is called otherwise or follows from another one.
PACKAGES = {"PIL": "pillow", "google": "protobuf", "geventhttpclient": "tritonclient"}
PACKAGES |= {"grpc": "tritonclient", "pydantic_core": "pydantic"}
# Triton brings the first, torch for GPUs the second; others are asked for in a sentence where an
# engine, a dtype or a placement needs them.
ELSEWHERE = {"triton_python_backend_utils", "triton", "ray", "tensorrt", "cuda", "_typeshed"}


def imported(file: Path) -> Iterator[str]:
    """Top-level names of what a file imports, other than relatively."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def test_every_import_is_required() -> None:
    lines = [
        line
        for name in ("serving", "gateway")
        for line in (PROJECT / f"requirements-{name}.txt").read_text().splitlines()
    ]
    required = {re.split(r"[\[=]", line)[0] for line in lines if line and line[0] != "#"}
    made = {
        found[1]
        for recipe in (PROJECT / "model_repository").glob("*/recipe.toml")
        for found in re.finditer('source = "make:(.+?)"', recipe.read_text())
    }
    files = [
        file
        for folder in SERVED
        for file in (PROJECT / folder).rglob("*.py")
        if file.name not in made  # which are of the build
    ]
    assert len(files) > 100
    wanted = {name: file for file in files for name in imported(file)}
    known = OWN | ELSEWHERE | sys.stdlib_module_names
    missing = {
        name: str(file.relative_to(PROJECT))
        for name, file in wanted.items()
        if name not in known and PACKAGES.get(name, name).replace("_", "-") not in required
    }
    assert missing == {}


PRODUCT = ("server", "gateway", "backends", "build_scripts", "clients")
MAKERS = {"TemporaryDirectory", "TemporaryFile", "NamedTemporaryFile", "mkdtemp", "mkstemp"}


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


@pytest.mark.filterwarnings("ignore")  # reading it is experimental, in part
def test_an_installation_has_every_package() -> None:
    from setuptools.config.pyprojecttoml import read_configuration

    found = read_configuration(PROJECT / "pyproject.toml")["tool"]["setuptools"]["packages"]
    homes = dict.fromkeys(("server", "gateway", "build_scripts", "clients", "benchmarks"), PROJECT)
    homes["python_mp"] = PROJECT / "backends" / "python_mp"
    assert set(found) == {
        ".".join(file.parent.relative_to(home).parts)
        for name, home in homes.items()
        for file in (home / name).rglob("__init__.py")
    }
