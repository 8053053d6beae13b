"""The serving image has what its code imports."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from server.process.installation import PROJECT

SERVED = ("backends", "server", "clients", "model_repository")
OWN = {"python_mp", "server", "clients"}
# By the name of the import, where a package is called otherwise or follows from another one.
PACKAGES = {"PIL": "pillow", "google": "protobuf", "geventhttpclient": "tritonclient"}
# Triton brings the first; others are asked for in a sentence where an engine or dtype needs them.
ELSEWHERE = {"triton_python_backend_utils", "tensorrt", "cuda", "_typeshed"}


def imported(file: Path) -> Iterator[str]:
    """Top-level names of what a file imports, other than relatively."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def test_every_import_is_required() -> None:
    lines = (PROJECT / "requirements-serving.txt").read_text().splitlines()
    required = {re.split(r"[\[=]", line)[0] for line in lines if line and line[0] != "#"}
    files = [file for folder in SERVED for file in (PROJECT / folder).rglob("*.py")]
    assert len(files) > 100
    wanted = {name: file for file in files for name in imported(file)}
    known = OWN | ELSEWHERE | sys.stdlib_module_names
    missing = {
        name: str(file.relative_to(PROJECT))
        for name, file in wanted.items()
        if name not in known and PACKAGES.get(name, name).replace("_", "-") not in required
    }
    assert missing == {}
