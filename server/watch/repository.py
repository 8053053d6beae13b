"""The model repository: what of it Triton must not touch, and what has changed in it."""

import compileall
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from python_mp.model import ensembles
from server.shell_names import is_odd
from server.watch import unbuilt

State = tuple[tuple[str, int, int], ...]
"""Path, time of change and size of each file of a model that Triton would load."""
NEVER: State = ()  # like no model's
# What a file itself may be at fault for; any other error is the machine's, and passes.
OWN = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
IGNORED = "__pycache__"
CONFIG = "config.pbtxt"


def models(repository: Path) -> set[str]:
    """The names of all models: folders with a config, or with versions."""
    return {
        folder.name
        for folder in repository.iterdir()
        if not folder.name.startswith(".")
        and folder.is_dir()
        and (_is_there(folder / CONFIG) or any(_versions(folder)))
    }


def harmful(repository: Path) -> dict[str, str]:
    """Models that must not be loaded, each with the reason in a sentence."""
    reasons = {name: objection(repository, name) for name in models(repository)}
    return {name: reason for name, reason in reasons.items() if reason}


def objection(repository: Path, model: str) -> str:
    """Why a model must not be loaded; empty if it may. A FIFO would hold Triton for ever.

    Raises:
        OSError: the machine is short of something, and nobody knows.
    """
    if is_odd(model):
        return (
            "its name holds characters that a shell reads, as which Triton hands it on; rename it"
        )
    try:
        paths = [repository / model, *_walk(repository / model)]
    except OSError as error:
        return _unreadable(model, error)
    inside = repository.resolve()
    for path in paths:
        shown = path.relative_to(repository)
        try:
            if path.is_symlink() and not path.resolve(strict=True).is_relative_to(inside):
                return f"{shown} is a link that leads out of the repository; put a copy there"
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                return f"{shown} is neither a file nor a folder"
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            return _unreadable(shown, error)
    return ""


def _unreadable(shown: object, error: OSError) -> str:
    if error.errno not in OWN:
        raise error
    return f"{shown} cannot be read: {error.strerror}"


def states(repository: Path) -> dict[str, State]:
    """All models and what their files look like; with the tokenizers of those that they exchange
    token ids with, since what is loaded with another one is refused until both are the same."""
    found = {name: _state(repository / name) for name in models(repository)}
    for _, one, other in ensembles.links(repository):
        made = {name: ensembles.newest_tokenizer(repository / name) for name in (one, other)}
        for name, beside in ((one, other), (other, one)):
            if name in found and all(made.values()):
                found[name] += ((f"{beside}: {made[beside]}", 0, 0),)
    return found


def compile_sources(folder: Path) -> None:
    """Write the bytecode of a model's sources, as its stubs would do.

    Triton takes what they write for a change of the model, and would start all instances anew where
    only their number has changed.
    """
    for version in _versions(folder):
        compileall.compile_dir(version, maxlevels=0, quiet=2)


def _state(folder: Path) -> State:
    files = [folder / CONFIG]
    for version in _versions(folder):
        manifest = version / "manifest.json"  # it has all others' hashes, and is written last
        files += [version, *([manifest] if manifest.is_file() else _walk(version))]
    return tuple(_entry(file, folder) for file in files)


def _entry(file: Path, folder: Path) -> tuple[str, int, int]:
    try:
        found = file.stat()
    except OSError:
        return str(file.relative_to(folder)), 0, 0
    # A folder's own time changes with the bytecode that is written into it.
    changed = 0 if stat.S_ISDIR(found.st_mode) else found.st_mtime_ns
    return str(file.relative_to(folder)), changed, found.st_size if changed else 0


def _versions(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        return sorted(path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    return []


def _is_there(path: Path) -> bool:
    """A fault of the file system does not mean that a model was taken away."""
    try:
        path.lstat()
    except OSError as error:
        return not isinstance(error, FileNotFoundError | NotADirectoryError)
    return True


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below, without what is hidden, and not through links to folders."""
    for parent, folders, files in os.walk(folder, onerror=_complain):
        folders[:] = sorted(name for name in folders if name[0] != "." and name != IGNORED)
        yield from (Path(parent, name) for name in [*folders, *sorted(files)] if name[0] != ".")


def _complain(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | PermissionError):  # what `objection` asks itself
        raise error


class Changes:
    """Which models have changed since they were last loaded, or tried.

    Attributes:
        unbuilt: models that were never tried, since they are not built yet; of each the recipe.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._seen = states(repository)
        self.unbuilt = unbuilt.models(repository)
        self._tried = {name: self._seen[name] for name in self._seen.keys() - self.unbuilt}

    def poll(self, busy: set[str]) -> Iterator[tuple[str, bool]]:
        """Models that differ and have looked the same at two polls, except `busy` ones, and
        ensembles whose steps differ or are busy.

        Yields:
            A model's name and whether it is still there. It counts as tried once the next one is
            asked for: where the caller raises, it comes again.
        """
        now = states(self._repository)
        before, self._seen = self._seen, now
        waiting = unbuilt.models(self._repository)
        self.unbuilt = {name: waiting[name] for name in waiting.keys() - self._tried.keys()}
        known = (now.keys() | self._tried.keys()) - self.unbuilt.keys()
        differ = {name for name in known if now.get(name) != self._tried.get(name)}
        for name in sorted(differ - busy):
            state = now.get(name)
            steps = ensembles.steps(self._repository / name / CONFIG)
            if state == before.get(name) and not steps & (differ | busy):
                yield name, state is not None
                self._note(name, state)

    def again(self, name: str) -> None:
        """What was tried of this model has not reached tritonserver: it is yielded once more."""
        self._tried[name] = NEVER

    def _note(self, name: str, state: State | None) -> None:
        self._tried.pop(name, None)
        if state is not None:
            self._tried[name] = state
