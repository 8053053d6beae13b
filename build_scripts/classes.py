"""What a classifier's config.json says of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from python_mp.model.errors import LoadError


@dataclass(frozen=True)
class Classes:
    """
    Attributes:
        labels: by the index of their logit.
        activation: what transformers' pipelines, or for its own folders sentence-transformers'
            CrossEncoder, make scores with; one of activations.BY_NAME.
    """

    labels: list[str]
    activation: str


def of(checkpoint: Checkpoint) -> Classes:
    """Raises BuildError where the labels are not one for each class."""
    from python_mp.sharding.families import transformers

    file = checkpoint.file("config.json")
    try:
        config = transformers.read(file)
    except LoadError as error:
        raise BuildError(str(error)) from None
    names: dict[Any, str] = config.id2label or {}
    if sorted(names) != list(range(len(names))) or not names:
        raise BuildError(f"{file}: id2label must name the classes 0, 1, 2, ...; it has {names}")
    if unnamed := [number for number, name in names.items() if str(name) in ("", "None")]:
        raise BuildError(f"{file}: id2label has no name for the class {unnamed[0]}: write one")
    return Classes(
        [str(names[number]) for number in range(len(names))],
        checkpoint.cross_encoder.activation
        if checkpoint.cross_encoder
        else _activation(getattr(config, "problem_type", None), len(names)),
    )


def _activation(problem: str | None, count: int) -> str:
    if problem == "regression":
        return "identity"
    return "sigmoid" if problem == "multi_label_classification" or count == 1 else "softmax"
