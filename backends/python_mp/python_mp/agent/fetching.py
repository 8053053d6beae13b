"""Where an agent finds a version directory: at the leader's path, if it holds the same there, else
in a cache, which is filled over the agent's own connection.

    CACHE/DIGEST.part/MODEL/VERSION/...     grows; what is there is not asked for again
    CACHE/DIGEST/MODEL/VERSION/...          whole, each file's sha256 checked

What was used last stays; the rest goes when a new one needs its room.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..model.errors import LoadError
from ..model.manifest import sha256
from .contents import Artifact, File

log = logging.getLogger("agent")

PIECE = 1 << 18
_PART = ".part"
_OURS = re.compile(r"[0-9a-f]{64}(\.part)?")
Fetch = Callable[[str, str, int], Awaitable[bytes]]
"""(digest, name, offset) -> the next bytes of a file of an artifact, at most PIECE."""


class Room(NamedTuple):
    """Where an agent keeps them. Of two agents each has a folder of its own."""

    folder: Path
    most: int
    """Bytes; those in use stay, even if they are more."""


class Cache:
    """
    Args:
        in_use: version directories that ranks have now, wherever they are.
    """

    def __init__(self, room: Room, fetch: Fetch, in_use: Callable[[], Iterable[Path]]) -> None:
        self._folder, self._most = room
        self._fetch = fetch
        self._in_use = in_use
        self._lock = asyncio.Lock()

    async def repository(self, there: Path, version: str, artifact: Artifact) -> Path:
        """A model's folder whose version has these files; `there` is the leader's.

        Raises:
            LoadError: what came is not what was announced.
            OSError: it cannot be read or written, or the connection ended.
        """
        async with self._lock:
            here = there / version
            if here.is_dir() and await asyncio.to_thread(Artifact.of, here) == artifact:
                return there
            whole = self._folder / artifact.digest
            if not whole.exists():
                await asyncio.to_thread(self._make_room, artifact)
                draft = whole.with_suffix(_PART)
                await self._fill(draft / there.name / version, artifact)
                draft.rename(whole)
            os.utime(whole)
            return whole / there.name

    def _make_room(self, artifact: Artifact) -> None:
        """Those used longest ago go first."""
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
                out.write(piece)
        if path.stat().st_size != file.size or await asyncio.to_thread(sha256, path) != file.sha256:
            path.unlink()
            raise LoadError(f"{name} came with another content than was announced")
