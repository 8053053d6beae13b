"""What a version directory holds, by content: what is served on one host is served on all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from ..model.manifest import sha256

_IGNORED = "__pycache__"
_Stat = tuple[str, int, int, int]
_hashes: dict[_Stat, str] = {}
_lock = Lock()
_MOST = 4096


class File(NamedTuple):
    size: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """All regular files of a version directory, by their paths in it."""

    files: Mapping[str, File]

    @classmethod
    def of(cls, folder: Path) -> Artifact:
        """Reads all that was not read since it changed last: takes long, so not in an event loop.

        Raises:
            OSError: a file cannot be read.
        """
        paths = (path for path in sorted(folder.rglob("*")) if _IGNORED not in path.parts)
        names = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
        return cls({name: File(path.stat().st_size, _hash(path)) for name, path in names.items()})

    @classmethod
    def from_json(cls, text: str | bytes) -> Artifact:
        """Raises ValueError where a path leads out of the folder."""
        files = {name: File(int(size), str(sha)) for name, (size, sha) in json.loads(text).items()}
        for name in files:
            if name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
                raise ValueError(f"no name of a file in a version directory: {name!r}")
        return cls(files)

    def to_json(self) -> str:
        return json.dumps(self.files)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files.values())

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    stat = path.stat()
    key = os.fspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino
    with _lock:
        if key in _hashes:
            return _hashes[key]
    found = sha256(path)
    with _lock:
        if len(_hashes) >= _MOST:
            _hashes.clear()
        _hashes[key] = found
    return found
