"""Files of a model are regular files inside its repository; anything else is refused unopened."""

from __future__ import annotations

import stat
from pathlib import Path

from .errors import LoadError

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)


def regular(folder: Path, name: str) -> Path:
    """The path of the file `name` in a version directory. To open a FIFO or a device would take for
    ever, and a link may lead to what is none of the model's business.

    Raises:
        LoadError: it is no regular file, or lies outside the model repository.
    """
    path = folder / name
    real = path.resolve()
    if not real.is_relative_to(folder.resolve().parent.parent):
        raise LoadError(f"{path} leads out of the model repository; put a copy there")
    try:
        mode = real.stat().st_mode
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from None
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "")
    if kind:
        raise LoadError(f"{path} is {kind}; it must be a regular file")
    return path


def present(folder: Path, name: str) -> bool:
    """Whether there is anything under that name, also a link that leads nowhere."""
    path = folder / name
    return path.exists() or path.is_symlink()
