"""Where an agent finds a version directory: at the leader's path, if it holds the same there, else
in a cache, which is filled over the agent's own connection.

    CACHE/DIGEST.part/MODEL/VERSION/...     grows; what is there is not asked for again
    CACHE/DIGEST/MODEL/VERSION/...          whole, each file's sha256 checked
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from ..model.errors import LoadError
from ..model.manifest import sha256
from .contents import Artifact, File

PIECE = 1 << 18
Fetch = Callable[[str, str, int], Awaitable[bytes]]
"""(digest, name, offset) -> the next bytes of a file of an artifact, at most PIECE."""


class Cache:
    """An agent's; nobody else uses the folder."""

    def __init__(self, folder: Path, fetch: Fetch) -> None:
        self._folder = folder
        self._fetch = fetch
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
                draft = whole.with_suffix(".part")
                await self._fill(draft / there.name / version, artifact)
                draft.rename(whole)
            return whole / there.name

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
