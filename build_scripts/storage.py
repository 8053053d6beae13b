"""Files that appear whole or not at all, and what they hold."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from build_scripts.errors import BuildError
from python_mp.model import manifest

J = TypeVar("J", dict[str, Any], list[Any])
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def sha256(path: Path) -> str:
    """Hexadecimal. Read once in a process for each state of the file."""
    state = path.stat()
    return _sha256(str(path), state.st_ino, state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: str, *_state: int) -> str:
    return manifest.sha256(Path(path))


def described(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256, as manifests have them."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def digest(value: object) -> str:
    """SHA-256 of a JSON value, the same for the same value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def files(folder: Path) -> dict[str, Path]:
    """All files below `folder`, by their relative names, sorted; but no bytecode, which Python
    leaves beside the code that it runs."""
    paths = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"
    )
    return {str(path.relative_to(folder)): path for path in paths}


def copy(paths: Mapping[str, Path], folder: Path) -> None:
    """Files by their names into the folder."""
    for name, path in paths.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def hashes(paths: Mapping[str, Path]) -> dict[str, str]:
    """Of files by their names."""
    return {name: sha256(path) for name, path in paths.items()}


def read_json(path: Path, kind: type[J] = dict) -> J:  # type: ignore[assignment]
    """An object, or a list. Raises BuildError, naming the file, for anything else."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError, OSError) as error:
        raise BuildError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(found, kind):
        raise BuildError(f"{path} is no {kind.__name__} in JSON.")
    return found


def read_optional(path: Path) -> dict[str, Any]:
    """An object; an empty one where there is no such file."""
    return read_json(path) if path.is_file() else {}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


@contextmanager
def locked(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold `folder` for this process; calls `waiting` if another one has it, and waits.

    The kernel drops the lock with the process, however it ends.
    """
    with _opened(folder) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `target` when the block ends well.

    A process killed meanwhile leaves a folder `.building-*`, for `sweep`.

    Raises:
        BuildError: the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        with _naming_a_full_disk(building):
            yield building
            building.chmod(0o755)
            for path in [*building.rglob("*"), building]:
                _sync(path)
        shutil.rmtree(target, ignore_errors=True)  # damaged, or it would not be made again
        building.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed builds left; the caller holds the lock."""
    for left in folder.glob(".building-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def remove(folder: Path) -> None:
    """Remove a folder that others may look at: it is gone at once, then its files."""
    leaving = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    folder.rename(leaving / folder.name)
    shutil.rmtree(leaving)


def require_space(folder: Path, size: int) -> None:
    """Raises BuildError unless `size` bytes fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise BuildError(
            f"The disk of {folder} is full: {megabytes(size)} are needed, {megabytes(free)} free"
        )


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


@contextmanager
def _naming_a_full_disk(path: Path) -> Iterator[None]:
    """A sentence where the disk is full. Libraries wrap the system's error, but keep its text."""
    try:
        yield
    except Exception as error:
        texts = [os.strerror(code) for code in FULL]
        known = getattr(error, "errno", None) in FULL
        if not known and not any(text in str(error) for text in texts):
            raise
        written = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        free = shutil.disk_usage(path.parent).free
        raise BuildError(
            f"The disk of {path.parent} is full: {megabytes(written)} were written and more is"
            f" needed, {megabytes(free)} are free"
        ) from error


def _sync(path: Path) -> None:
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
