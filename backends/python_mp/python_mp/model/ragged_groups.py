"""Which ragged tensors of a model have lengths in common: the parameter `lengths`.

LENGTHS                                  of all of them
A_LENGTHS:IDS+STATES, B_LENGTHS:AUDIO    of these inputs and outputs each
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ConfigError

CU_SEQLENS = "cu_seqlens"


@dataclass(frozen=True)
class Group:
    """Tensors of which a sequence has as many rows of one as of the others.

    Attributes:
        lengths: the input that says how many of them are real; empty where all are.
        tensors: inputs and outputs; empty for all that are ragged.
        cu_seqlens: the name of what says in a batch where the sequences lie. It names the inputs,
            but for those of the first group.
    """

    lengths: str
    tensors: tuple[str, ...]
    cu_seqlens: str = CU_SEQLENS


def read(text: str) -> tuple[Group, ...]:
    """
    Raises:
        ConfigError: the parameter is malformed.
    """
    if ":" not in text:
        return (Group(text, ()),)
    groups: list[Group] = []
    for part in text.split(","):
        lengths, _, tensors = (each.strip() for each in part.partition(":"))
        names = tuple(name.strip() for name in tensors.split("+"))
        if not lengths or not all(names):
            raise ConfigError(
                f"parameter 'lengths' is '{text}'; write the input of lengths, or several with"
                " their tensors, as in A_LENGTHS:IDS+STATES, B_LENGTHS:AUDIO"
            )
        key = f"{CU_SEQLENS}:{'+'.join(names)}" if groups else CU_SEQLENS
        groups.append(Group(lengths, names, key))
    return tuple(groups)


def check(groups: Sequence[Group], ragged: Sequence[str], others: Sequence[str]) -> None:
    """
    Args:
        ragged: names of the ragged tensors.
        others: of those that are not.

    Raises:
        ConfigError: a tensor is in no group, or in two, or is not ragged.
    """
    if not groups[0].tensors:
        return
    named = [name for group in groups for name in group.tensors]
    for name in ragged:
        if named.count(name) != 1:
            raise ConfigError(
                f"parameter 'lengths' names '{name}' {named.count(name)} times; with lengths of"
                " their own, it names each tensor whose first dim differs from sequence to"
                " sequence once"
            )
    for name in named:
        if name not in ragged:
            what = "is not ragged" if name in others else "is no tensor of the model"
            raise ConfigError(f"parameter 'lengths' names '{name}', which {what}")


def of(groups: Sequence[Group], name: str) -> int:
    """The number of a tensor's group."""
    return next((n for n, group in enumerate(groups) if name in group.tensors), 0)
