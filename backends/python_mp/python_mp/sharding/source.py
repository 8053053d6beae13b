"""Where a model's module comes from: the user's module.py, or a checkpoint of a built-in family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..machine import python_file
from ..model.errors import LoadError, describe
from ..model.paths import present, regular
from . import plain
from .packed import Packed
from .shard import Shard

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Check = Callable[[Packed], None]
Finish = Callable[[Packed, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""(batch, what an engine returned) -> the outputs by name."""


@dataclass(frozen=True)
class Source:
    """`build(shard)` returns one rank's module. `check(batch)` raises InvalidInput for what cannot
    be computed; it needs no weights, so that compiled engines have it too. `finish(shard)` is for
    the one rank that answers: what it does with the outputs, whichever engine they are of."""

    build: Callable[[Shard], nn.Module]
    check: Check | None
    finish: Callable[[Shard], Finish] | None = None
    generates: bool = False
    """Whether its batches are steps of sequences that go on, with a cache."""
    whole: Callable[[Shard], nn.Module] | None = None
    """The same by torch alone, in one piece, of a module that does without our layers."""


def read(folder: Path) -> Source:
    """The source in a version directory.

    Raises:
        LoadError: there is none, or it cannot be used. The message names the file.
    """
    if present(folder, "module.py"):
        return _user_module(regular(folder, "module.py"))
    if present(folder, "config.json"):
        return _checkpoint(folder)
    raise LoadError(f"{folder} holds neither module.py nor a checkpoint's config.json")


def prepare(folder: Path) -> None:
    """Imports what a checkpoint's module is made of, and no user's code. What is wrong with the
    folder is for `read` to say."""
    if present(folder, "module.py") or not present(folder, "config.json"):
        return
    with suppress(Exception):
        from .families import skeleton, task, transformers

        config = transformers.read(regular(folder, "config.json"))
        skeleton.kind(config)
        if wanted := task.read(folder):
            skeleton.kind(config, wanted.kind)


def _checkpoint(folder: Path) -> Source:
    from .families import heads, task, transformers

    config = transformers.read(regular(folder, "config.json"))
    wanted = task.read(folder)
    if wanted and wanted.kind == "generate":
        return _decoder(config)
    return Source(
        partial(transformers.Encoder, config=config, task=wanted),
        partial(transformers.check, config),
        partial(heads.head, config=config, task=wanted) if wanted else None,
    )


def _decoder(config: PretrainedConfig) -> Source:
    from .families import generation, transformers

    return Source(
        partial(generation.Decoder, config=config),
        partial(transformers.check, config),
        lambda _: generation.sampled,
        generates=True,
    )


def _user_module(path: Path) -> Source:
    try:
        module = python_file.load(path, "module")
    except Exception as error:
        raise LoadError(f"{path} raised {describe(error)}{_moved(error)}") from error
    check = getattr(module, "check", None)
    if check is not None and not callable(check):
        raise LoadError(f"{path}: check must be a function of a batch, not {check!r}")
    if callable(getattr(module, "build", None)):
        return Source(module.build, check)
    if found := plain.find(module, path):
        return Source(found.build, check, whole=found.whole)
    raise LoadError(
        f"{path} has neither a torch.nn.Module nor a function build(shard); see README, bring your"
        " own model"
    )


def _moved(error: Exception) -> str:
    """What to write instead of a name that had another place before 0.2."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    if not name.startswith("python_mp."):
        return ""
    return "; since 0.2 what a module imports lies in python_mp.sharding (errors: python_mp.model)"
