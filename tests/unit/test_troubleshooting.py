"""docs/troubleshooting.md: what it quotes is still said by the sources."""

import ast
import re
from collections.abc import Iterator

import pytest

from server.process.installation import PROJECT

PAGE = (PROJECT / "docs" / "troubleshooting.md").read_text()
QUOTED = [
    message
    for cell in re.findall(r"^\| `(.*?)` \| ", PAGE, re.MULTILINE)
    for message in cell.split("`, `")
]
FOLDERS = ("backends", "server", "build_scripts", "model_repository", "gateway")


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string, with … in the place of a value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%(\.\d)?[sdf]|\{\w+\}", "…", node.value)


@pytest.fixture(scope="module")
def said() -> list[str]:
    files = (file for folder in FOLDERS for file in (PROJECT / folder).rglob("*.py"))
    return [text for file in files for text in texts(ast.parse(file.read_text()))]


def test_every_message_is_still_said(said: list[str]) -> None:
    assert len(QUOTED) > 50
    assert [message for message in QUOTED if not any(message in text for text in said)] == []
