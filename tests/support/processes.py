"""Other Python processes for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "backends" / "python_mp")))}
"""Where tests and product are found; what a process of its own gets on top of ours."""


@contextmanager
def python(code: str | Path, *arguments: object, says: str = "") -> Iterator[subprocess.Popen[str]]:
    """Runs code or a file, from its first line on, which is `says`; kills it at the end."""
    program = [code] if isinstance(code, Path) else ["-c", code]
    with subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if says:
                assert process.stdout
                assert process.stdout.readline() == f"{says}\n"
            yield process
        finally:
            process.kill()
