"""settings.json of a step's version: what the build found in the checkpoint's folder for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..model.errors import LoadError
from ..model.paths import present

NAME = "settings.json"


def read(args: dict[str, str], name: str = NAME) -> dict[str, Any]:
    """Of the version that Triton loads with these arguments of `initialize`; nothing where the
    version has no such file.

    Raises:
        LoadError: it is not as the build writes it.
    """
    version = Path(args["model_repository"]) / args["model_version"]
    if not present(version, name):
        return {}
    try:
        said = json.loads((version / name).read_text())
    except (OSError, ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise LoadError(f"{version / name} is not as the build writes it: build the model again")
    return said
