"""What a version directory holds, by content: what is served on one host is served on all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from errno import ECANCELED
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

_IGNORED = "__pycache__"
_MOST, _PIECE = 4096, 1 << 20


class File(NamedTuple):
    size: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """All regular files of a version directory, by their paths in it."""

    files: Mapping[str, File]

    @classmethod
    def of(cls, folder: Path, hashes: Hashes | None = None) -> Artifact:
        """Reads all that was not read since it changed last: takes long, so not in an event loop.

        Raises:
            OSError: a file cannot be read.
        """
        known = hashes or _of_this_process
        paths = (path for path in sorted(folder.rglob("*")) if _IGNORED not in path.parts)
        names = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
        return cls(
            {name: File(path.stat().st_size, known.of(path)) for name, path in names.items()}
        )

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


class Hashes:
    """Of files, as long as these are what they were: by inode, size and times.

    Args:
        file: where they are kept for the next process; nobody else may write there.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known: dict[str, list[Any]] = _read(file) if file else {}
        self._is_kept = True
        self._lock = Lock()
        self._stopped = False

    def of(self, path: Path) -> str:
        """sha256, hexadecimal. Raises OSError; also where it was stopped meanwhile."""
        with self._lock:  # Also while one is read: nobody else reads it meanwhile, in vain.
            stat = path.stat()
            name = f"{stat.st_dev} {stat.st_ino}"
            seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            known = self._known.get(name)
            if known and known[:-1] == seen:
                return str(known[-1])
            found = self._digest(path)
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[name] = [*seen, found]
            self._is_kept = False
            return found

    def keep(self) -> None:
        """For the next process, which reads the files again where these cannot be written."""
        with self._lock:
            if not self._file or self._is_kept:
                return
            draft = self._file.with_suffix(f".{os.getpid()}")
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                draft.write_text(json.dumps(self._known))
                draft.rename(self._file)
            self._is_kept = True

    def stop(self) -> None:
        """Who reads a file does not do so to its end."""
        self._stopped = True

    def _digest(self, path: Path) -> str:
        total = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                if self._stopped:
                    raise OSError(ECANCELED, "its connection has ended meanwhile")
                total.update(piece)
        return total.hexdigest()


_of_this_process = Hashes()


def _read(file: Path) -> dict[str, list[Any]]:
    """Nothing where there is none, or where it is damaged."""
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    sound = isinstance(said, dict) and all(isinstance(each, list) for each in said.values())
    return said if sound else {}
