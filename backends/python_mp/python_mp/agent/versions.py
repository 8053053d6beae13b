"""What must be equal on all hosts of a replica: our code, and what computes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
_LIBRARIES = ("torch", "transformers", "numpy", "onnxruntime", "tensorrt")


@cache
def versions() -> Mapping[str, str]:
    """By name; `code` is a hash of this package's modules."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "code": _code()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def difference(theirs: Mapping[str, str]) -> str:
    """How an agent's versions differ from ours, as a sentence; empty if they do not."""
    ours = versions()
    unlike = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    if not unlike:
        return ""
    told = ", ".join(
        f"{key} {_short(theirs.get(key))} (here {_short(ours.get(key))})" for key in unlike
    )
    return f"the agent has {told}: install the same release and libraries on all hosts"


def _short(version: str | None) -> str:
    return str(version or "none")[:12]


def _code() -> str:
    """Of all modules, by their paths."""
    total = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        total.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()
