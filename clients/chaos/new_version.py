"""A new version of a model, as the build scripts would publish it, and the way back."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def versions(folder: Path) -> list[int]:
    """Numbers of a model's version directories, ascending."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal())


@contextmanager
def next_version(folder: Path) -> Iterator[int]:
    """A copy of the newest version under the next number; gone when the context closes.

    It appears and goes by one rename, since a server may look at any moment.
    """
    newest = versions(folder)[-1]
    public, hidden = folder / str(newest + 1), folder / f".chaos-{newest + 1}"
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        shutil.copytree(folder / str(newest), hidden)
        hidden.rename(public)
        yield newest + 1
    finally:
        if public.exists() and not hidden.exists():
            public.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
