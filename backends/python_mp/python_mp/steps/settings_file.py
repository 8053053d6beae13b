"""settings.json of a step's version: what the build found in the checkpoint's folder for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "settings.json"


def read(args: dict[str, str]) -> dict[str, Any]:
    """Of the version that Triton loads with these arguments of `initialize`."""
    version = Path(args["model_repository"]) / args["model_version"]
    said: dict[str, Any] = json.loads((version / NAME).read_text())
    return said
