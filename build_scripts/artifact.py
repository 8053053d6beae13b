"""A version directory as an artifact: what it should hold, whether it does, and how it appears.

model_repository/ranker/
  .1.building-x7/  files written and fsynced; a kill here leaves the old version untouched
  .1.ready/        one rename commits them; a kill from here on is completed by the next build
  1/               each file renamed into place, manifest.json last; other files are kept
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from build_scripts.manifest import NAME, Manifest

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"


class BuildError(Exception):
    """A build that cannot be done; the message is one sentence for the user."""


@dataclass(frozen=True)
class Artifact:
    """What one version directory should hold.

    Attributes:
        version: the version directory, such as `model_repository/ranker/1`.
        recipe: JSON values that decide the outcome; a change makes the artifact stale.
        sources: input files by name; a changed content makes the artifact stale.
        write: writes the artifact's files into the directory it is given.
    """

    version: Path
    recipe: Mapping[str, object]
    sources: Mapping[str, Path]
    write: Callable[[Path, Progress], None]

    @property
    def name(self) -> str:
        return f"{self.version.parent.name}/{self.version.name}"

    def is_current(self, *, check: bool = False) -> bool:
        """Whether the version directory holds what this artifact says.

        Sizes and modification times decide; `check` reads every byte instead.
        """
        _complete(self.version)
        manifest = Manifest.read(self.version)
        return (
            manifest is not None
            and manifest.recipe == dict(self.recipe)
            and manifest.matches(self.version, self.sources, check=check)
        )

    def ensure(self, progress: Progress, *, check: bool = False) -> bool:
        """Build if missing or stale; returns whether it built. Raises BuildError."""
        with _locked(self.version.parent):
            if self.is_current(check=check):
                return False
            with _publishing(self.version) as directory:
                self.write(directory, progress)
                Manifest.of(directory, self.recipe, self.sources).write(directory)
            return True


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep a second build of the same model waiting; the lock ends with its process."""
    directory.mkdir(parents=True, exist_ok=True)
    with _opened(directory) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _publishing(version: Path) -> Iterator[Path]:
    """A directory whose files replace those of `version`, all or none, when the block ends well."""
    prefix = f".{version.name}.building-"
    for left in version.parent.glob(f"{prefix}*"):  # by a build that was killed
        shutil.rmtree(left, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=prefix, dir=version.parent))
    try:
        yield building
        for file in building.iterdir():
            file.chmod(0o644)
            _sync(file)
        _sync(building)
        building.rename(_ready(version))
    finally:
        shutil.rmtree(building, ignore_errors=True)
    _complete(version)


def _ready(version: Path) -> Path:
    return version.parent / f".{version.name}.ready"


def _complete(version: Path) -> None:
    """Move committed files into place, and go on where a killed build left off."""
    ready = _ready(version)
    if not ready.exists():
        return
    version.mkdir(exist_ok=True)
    for file in sorted(ready.iterdir(), key=lambda file: file.name == NAME):
        file.replace(version / file.name)
    _sync(version)
    ready.rmdir()
    _sync(version.parent)


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
