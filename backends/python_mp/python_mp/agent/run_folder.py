"""An agent's private folder, for what ranks put on disk; gone with it, or with the next one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "python_mp-agent-"
_LOCK = "lock"


@contextmanager
def run_folder(parent: Path) -> Iterator[Path]:
    """A new one inside `parent`. What agents that were killed have left there is removed: nobody
    holds its lock any more. Raises OSError."""
    for left in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            os.close(_locked(left / _LOCK))
            shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = _locked(folder / "new", os.O_CREAT)
    (folder / "new").rename(folder / _LOCK)  # Nobody has seen it while it was not locked.
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(file: Path, more: int = 0) -> int:
    """A descriptor, which no program that is started inherits."""
    lock = os.open(file, os.O_RDWR | os.O_NOFOLLOW | more, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
