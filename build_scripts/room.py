"""Whether the reference's model fits this machine's memory. Where it does not, a build says so, and
publishes what nobody has compared; once there is more memory, it is done again."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from build_scripts import checkpoint_folder
from build_scripts.errors import BuildError
from python_mp.machine.memory import available as available

LACKS = "lacks_memory"
"""In a stage's facts: bytes that it would have taken, and did not find."""
BESIDE = 1 << 29
"""Bytes of Python, torch, and what one text takes on its way through a model."""


def reference(folder: Path) -> int:
    """Bytes of a checkpoint's model in one piece, in float32."""
    return 4 * sum(map(prod, checkpoint_folder.tensors(folder).values())) + BESIDE


def require(folder: Path, what: str) -> None:
    """For what cannot be left out. Raises BuildError where there is too little."""
    if (nbytes := reference(folder)) > available():
        raise BuildError(f"{what}: {_lack(nbytes)}; build it on a larger machine")


def unverified(nbytes: int) -> dict[str, Any]:
    """What stands in a manifest instead of an accuracy."""
    why = f"{_lack(nbytes)}; build it on a larger machine to have it compared"
    return {"verified": "no", "why": why, LACKS: nbytes}


def _lack(nbytes: int) -> str:
    wanted, found = (f"{each / 1e9:.1f} GB" for each in (nbytes, available()))
    return (
        f"the reference, the model in one piece in float32, takes {wanted} of memory, and {found}"
        " are free"
    )
