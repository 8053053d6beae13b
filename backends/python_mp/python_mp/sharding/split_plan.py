"""Which linears of a module are split among the ranks of a stage, and how."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..model.errors import LoadError
from .cut import Cut

Way = Literal[
    "colwise",
    "rowwise",
    "vocabulary",
    "colwise_gather_output",
    "rowwise_split_input",
    "replicated",
]
WAYS = get_args(Way)


@dataclass(frozen=True)
class Split:
    """How one linear, or one embedding, is split.

    Attributes:
        way: "colwise" and "rowwise" of the linear y = W x are Megatron-LM's column- and
            row-parallel; "colwise_gather_output" and "rowwise_split_input" are the same with whole
            rows behind and before; "vocabulary" is an embedding of which each rank has some rows;
            "replicated" is whole on every rank.
        cut: what stays together in the dimension that is split.
        tied: a head of this stage multiplies with an embedding's weight.
    """

    way: Way
    cut: Cut = field(default_factory=Cut)
    tied: bool = False


Plan = Mapping[str, "str | Split"]
"""From patterns of modules' names, with `*` for any part of them, to a `Split` or its way. The
first pattern that fits counts; what no pattern fits is whole on every rank."""


def splits(plan: Plan, names: Iterable[str]) -> dict[str, Split]:
    """The modules of these names that are split.

    Raises:
        LoadError: a value of the plan is not known.
    """
    rules = [(_regex(pattern), _split(pattern, value)) for pattern, value in plan.items()]
    found: dict[str, Split] = {}
    for name in names:
        split = next((split for regex, split in rules if regex.fullmatch(name)), None)
        if split is not None and split.way != "replicated":
            found[name] = split
    return found


def unused(plan: Plan, names: Iterable[str]) -> list[str]:
    """The patterns that fit none of the names."""
    known = list(names)
    return [each for each in plan if not any(map(_regex(each).fullmatch, known))]


def _split(pattern: str, value: str | Split) -> Split:
    if isinstance(value, Split):
        return value
    if value not in WAYS:
        raise LoadError(f"the plan has {value!r} for {pattern}; known are {', '.join(WAYS)}")
    return Split(value)  # type: ignore[arg-type]


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", ".*"))
