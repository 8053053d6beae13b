"""The ensembles of a model repository: which steps hand tensors to which, and whether a tokenizer
and what reads its ids are of one checkpoint. Standard library only."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from . import pbtxt
from .errors import LoadError
from .manifest import NAME, Manifest

Edge = tuple[str, str]
"""A model that makes a tensor, and one that is given it."""
Step = tuple[str, set[str], set[str]]
"""A model of an ensemble, and the names there of what it makes and reads."""
CONFIG = "config.pbtxt"


def admit(version: Path, built: Manifest | None) -> None:
    """Checks a version that is about to be served, of that manifest.

    Raises:
        LoadError: a neighbour in an ensemble was made with another tokenizer.
    """
    if reason := misfit(version, _said(built)):
        raise LoadError(reason)


def misfit(version: Path, tokenizer: str | None) -> str:
    """Why the version does not fit its neighbours; empty where it does, or nothing is known of
    them."""
    model = version.parent
    for ensemble, other in neighbours(model):
        if tokenizer and newest_tokenizer(model.parent / other) not in (None, tokenizer):
            return (
                f"{model.name}/{version.name} and {other} were built with two tokenizers, so that"
                f" the ensemble {ensemble} would answer nonsense: make both by one recipe.toml, and"
                f" run `python -m build_scripts.build {model.name} {other}`"
            )
    return ""


def neighbours(model: Path) -> Iterator[tuple[str, str]]:
    """Ensembles, and the models that hand tensors to this one there or get them from it."""
    for ensemble, one, other in links(model.parent):
        if model.name in (one, other) and one != other:
            yield ensemble, other if model.name == one else one


def links(repository: Path) -> Iterator[tuple[str, str, str]]:
    """Of all ensembles: its name, a model, and one that is given what that one makes."""
    for config in sorted(repository.glob(f"*/{CONFIG}")):
        for maker, reader in edges(config):
            yield config.parent.name, maker, reader


def newest_tokenizer(model: Path) -> str | None:
    """The hash of the tokenizer that the newest version was made with, where that is known."""
    numbers = [int(path.name) for path in model.glob("[0-9]*") if path.name.isdecimal()]
    version = model / str(max(numbers, default=0))
    try:
        state = (version / NAME).stat()
        if not stat.S_ISREG(state.st_mode):
            return None
        return _tokenizer(str(version), state.st_mtime_ns, state.st_size)
    except (OSError, LoadError):
        return None


@lru_cache(maxsize=256)
def _tokenizer(version: str, *_state: int) -> str | None:
    return _said(Manifest.read(Path(version)))


def _said(built: Manifest | None) -> str | None:
    """The hash of the tokenizer, where the manifest has it."""
    said = built.source.get("tokenizer") if built else None
    return said if isinstance(said, str) else None


def edges(config: Path) -> tuple[Edge, ...]:
    """Which models of the ensemble hand tensors to which; none where it is no ensemble."""
    found = _steps(config)
    return tuple(
        (maker, reader) for maker, made, _ in found for reader, _, read in found if made & read
    )


def steps(config: Path) -> set[str]:
    """The models that the ensemble chains; none where it is no ensemble."""
    return {name for name, _, _ in _steps(config)}


def _steps(config: Path) -> tuple[Step, ...]:
    try:
        state = config.stat()
        if not stat.S_ISREG(state.st_mode):  # to read a FIFO would take for ever
            return ()
        return _read(str(config), state.st_mtime_ns, state.st_size)
    except (OSError, ValueError, RecursionError):  # whoever loads it says what is wrong
        return ()


@lru_cache(maxsize=256)
def _read(config: str, *_state: int) -> tuple[Step, ...]:
    text = Path(config).read_text()
    if "ensemble_scheduling" not in text:
        return ()
    return tuple(
        (str(name), _tensors(step, "output_map"), _tensors(step, "input_map"))
        for scheduling in pbtxt.parse(text).get("ensemble_scheduling", [])
        for step in scheduling.get("step", [])
        for name in step.get("model_name", [])
    )


def _tensors(step: pbtxt.Message, kind: str) -> set[str]:
    return {str(value) for each in step.get(kind, []) for value in each.get("value", [])}
