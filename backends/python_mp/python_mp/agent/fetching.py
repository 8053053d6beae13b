"""Where an agent finds a version directory: at the leader's path, if it holds the same there, else
in a cache, which is filled over the agent's own connection.

    CACHE/DIGEST.part/MODEL/VERSION/...     grows; what is there is not asked for again
    CACHE/DIGEST/MODEL/VERSION/...          whole, each file's sha256 checked
    CACHE/hashes.json                       of files that were read, and are untouched since
    CACHE/lock                              who has it changes what is here

What was used last stays; the rest goes when a new one needs its room.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ..model.errors import LoadError, describe
from .contents import Artifact, File, Hashes

log = logging.getLogger("agent")

PIECE = 1 << 18
_PART = ".part"
_LOOK_SECONDS = 0.1
_OURS = re.compile(r"[0-9a-f]{64}(\.part)?")
Fetch = Callable[[str, str, int], Awaitable[bytes]]
"""(digest, name, offset) -> the next bytes of a file of an artifact, at most PIECE."""


class Room(NamedTuple):
    """Where an agent keeps them; two agents may have the same folder."""

    folder: Path
    most: int
    """Bytes; those in use stay, even if they are more."""


class Cache:
    """
    Args:
        in_use: version directories that ranks of this agent have now, wherever they are.
    """

    def __init__(self, room: Room, fetch: Fetch, in_use: Callable[[], Iterable[Path]]) -> None:
        self._folder, self._most = room
        self._fetch = fetch
        self._in_use = in_use
        self._lock = asyncio.Lock()
        self._hashes = Hashes(self._folder / "hashes.json")

    def likely(self, there: Path, version: str, artifact: Artifact) -> Path | None:
        """The model's folder that `repository` will find, if its files are what their sizes say."""
        for model in (there, self._folder / artifact.digest / there.name):
            sizes = ((model / version / name, file.size) for name, file in artifact.files.items())
            with suppress(OSError):  # It may be of somebody else.
                if all(path.stat().st_size == size for path, size in sizes):
                    return model
        return None

    def close(self) -> None:
        """What is being read need not be read to its end."""
        self._hashes.stop()

    async def repository(self, there: Path, version: str, artifact: Artifact) -> Path:
        """A model's folder whose version has these files; `there` is the leader's.

        Raises:
            LoadError: what came is not what was announced.
            OSError: it cannot be read or written, or the connection ended.
        """
        async with self._lock:
            if await asyncio.to_thread(self._has, there / version, artifact):
                return there
            whole = self._folder / artifact.digest
            async with self._alone():
                if not await asyncio.to_thread(self._has, whole / there.name / version, artifact):
                    await asyncio.to_thread(self._make_room, artifact)
                    draft = whole.with_suffix(_PART)
                    await self._fill(draft / there.name / version, artifact)
                    draft.rename(whole)
                    self._hashes.keep()
                os.utime(whole)
            return whole / there.name

    def _has(self, version: Path, artifact: Artifact) -> bool:
        """Whether these are the same files; read are only those that were touched."""
        try:
            return version.is_dir() and Artifact.of(version, self._hashes) == artifact
        except OSError as error:
            log.warning("%s is not taken from here: %s", version, describe(error))
            return False
        finally:
            self._hashes.keep()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Of all agents with this folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            while not _is_locked(lock.fileno()):
                await asyncio.sleep(_LOOK_SECONDS)
            yield

    def _make_room(self, artifact: Artifact) -> None:
        """Those used longest ago go first."""
        shutil.rmtree(self._folder / artifact.digest, ignore_errors=True)  # It is damaged.
        in_use = {artifact.digest, *(path.parent.parent.name for path in self._in_use())}
        found = [path for path in self._folder.glob("*") if _OURS.fullmatch(path.name)]
        found.sort(key=lambda path: (path.stem in in_use, path.stat().st_mtime), reverse=True)
        left = self._most - artifact.size
        for path in found:
            left -= sum(each.lstat().st_size for each in path.rglob("*") if not each.is_dir())
            if left < 0 and path.stem not in in_use:
                log.info("%s is removed, which was used longest ago", path)
                shutil.rmtree(path)

    async def _fill(self, folder: Path, artifact: Artifact) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in artifact.files.items():
            await self._fetch_file(folder / name, artifact.digest, name, file)
        for path in folder.rglob("*"):
            if path.is_file() and path.relative_to(folder).as_posix() not in artifact.files:
                path.unlink()

    async def _fetch_file(self, path: Path, digest: str, name: str, file: File) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as out:
            while out.tell() < file.size:
                piece = await self._fetch(digest, name, out.tell())
                if not piece:
                    raise LoadError(f"the leader's {name} has become shorter: load the model anew")
                await asyncio.to_thread(out.write, piece)  # A disk may let it wait.
        if path.stat().st_size != file.size or await asyncio.to_thread(self._hashes.of, path) != (
            file.sha256
        ):
            path.unlink()
            raise LoadError(f"{name} came with another content than was announced")


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
