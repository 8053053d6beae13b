"""`1/manifest.json`: which files an artifact has, from what, made by which versions."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Self

NAME = "manifest.json"
FORMAT = 1
BUILT_WITH = ("numpy", "safetensors", "tokenizers")


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hexadecimal) of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())

    def matches(self, path: Path, *, trusted_until: int) -> bool:
        """Whether `path` has this content; not read if last modified by `trusted_until` (ns)."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return path.stat().st_mtime_ns <= trusted_until or FileRecord.of(path) == self


@dataclass(frozen=True)
class Manifest:
    """An artifact's description, as it is stored."""

    recipe: dict[str, object]
    sources: dict[str, FileRecord]
    files: dict[str, FileRecord]
    versions: dict[str, str]
    built: str
    format: int = field(default=FORMAT)

    @classmethod
    def of(cls, directory: Path, recipe: Mapping[str, object], sources: Mapping[str, Path]) -> Self:
        """Describe the files that `directory` holds now."""
        return cls(
            recipe=dict(recipe),
            sources={name: FileRecord.of(path) for name, path in sources.items()},
            files={path.name: FileRecord.of(path) for path in sorted(directory.iterdir())},
            versions={package: version(package) for package in BUILT_WITH},
            built=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The manifest of `directory`; None where there is none that this version can read."""
        try:
            stored = json.loads((directory / NAME).read_text())
            if stored["format"] != FORMAT:
                return None
            for key in ("sources", "files"):
                stored[key] = {name: FileRecord(**record) for name, record in stored[key].items()}
            return cls(**stored)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, directory: Path) -> None:
        (directory / NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def matches(self, directory: Path, sources: Mapping[str, Path], *, check: bool) -> bool:
        """Whether the recorded files and sources are what lies on disk now."""
        if self.sources.keys() != sources.keys():
            return False
        trusted_until = 0 if check else (directory / NAME).stat().st_mtime_ns
        pairs = [(record, directory / name) for name, record in self.files.items()]
        pairs += [(record, sources[name]) for name, record in self.sources.items()]
        return all(record.matches(path, trusted_until=trusted_until) for record, path in pairs)
