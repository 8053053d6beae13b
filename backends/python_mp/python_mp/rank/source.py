"""Where a model's module comes from: the user's module.py, or a checkpoint of a built-in family."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from ..errors import LoadError
from .packed import Packed
from .shard import Shard

Check = Callable[[Packed], None]


@dataclass(frozen=True)
class Source:
    """`build(shard)` returns one rank's module. `check(batch)` raises InvalidInput for what cannot
    be computed; it needs no weights, so that compiled engines have it too."""

    build: Callable[[Shard], nn.Module]
    check: Check | None


def read(folder: Path) -> Source:
    """The source in a version directory.

    Raises:
        LoadError: there is none, or it cannot be used. The message names the file.
    """
    if (folder / "module.py").exists():
        return _user_module(folder / "module.py")
    if (folder / "config.json").exists():
        from . import encoder

        config = encoder.EncoderConfig.read(folder / "config.json")
        return Source(partial(encoder.Encoder, config=config), partial(encoder.check, config))
    raise LoadError(f"{folder} holds neither module.py nor a checkpoint's config.json")


def _user_module(path: Path) -> Source:
    spec = importlib.util.spec_from_file_location("module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise LoadError(f"{path} raised {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "build", None)):
        raise LoadError(f"{path} has no function build(shard); see README, bring your own model")
    return Source(module.build, getattr(module, "check", None))
