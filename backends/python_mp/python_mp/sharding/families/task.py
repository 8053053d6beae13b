"""task.json: what is made of a model's hidden states. The build writes it, ranks read it.

Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ...model.errors import LoadError
from ...model.paths import present, regular

NAME, WEIGHTS = "task.json", "head.safetensors"
Kind = Literal["embed", "rerank", "classify", "tokens"]
"""One of parameters.TASKS."""
OUTPUTS: Mapping[Kind | None, str] = {
    None: "HIDDEN_STATES",
    "embed": "SENTENCE_EMBEDDING",
    "rerank": "LOGITS",
    "classify": "LOGITS",
    "tokens": "LOGITS",
}


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        pooling: of `embed`: modes of pooling.MODES, whose vectors stand one behind the other.
    """

    kind: Kind
    pooling: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        (folder / NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")


def read(folder: Path) -> Task | None:
    """The task of a version directory; None where hidden states are the outputs.

    Raises:
        LoadError: it is not as the build writes it.
    """
    if not present(folder, NAME):
        return None
    path = regular(folder, NAME)
    try:
        said: dict[str, Any] = json.loads(path.read_text())
        return Task(**{name: _frozen(value) for name, value in said.items()})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"{path} is not as a build writes it: {error}") from None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
