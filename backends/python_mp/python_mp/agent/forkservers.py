"""Where an agent's ranks come from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

from ..front.supervise.forkserver_client import ForkserverClient
from ..model.config import ModelConfig

_LOOK_SECONDS = 0.02


class _Made(NamedTuple):
    engine: str
    folder: Path
    client: ForkserverClient


class Forkservers:
    """One for each model, kept from generation to generation: it has imported the engine. The
    kernel ends them with this process's main thread."""

    def __init__(self) -> None:
        self._made: dict[str, _Made] = {}
        """By models' names."""
        self._old: list[_Made] = []
        """Of versions that were replaced, whose ranks may still serve."""

    async def get(self, config: ModelConfig) -> ForkserverClient:
        """Of this version. Raises ForkserverLost, TimeoutError or OSError."""
        client = self.begin(config)
        async with asyncio.timeout(config.parameters.start_timeout_seconds):
            while not client.wait_ready(0.0):
                await asyncio.sleep(_LOOK_SECONDS)
        return client

    def has(self, model: str, version: str) -> bool:
        """Wherever that version lies."""
        return model in self._made and self._made[model].folder.name == version

    def begin(self, config: ModelConfig) -> ForkserverClient:
        """It may not have imported the engine yet. Raises OSError."""
        made = self._made.get(config.name)
        wanted = config.parameters.engine, config.folder
        if made and made[:2] != wanted:
            self._old.append(self._made.pop(config.name))
            made = None
        if made and not (made.client.is_sound or made.client.is_starting):
            made.client.kill()
            made = None
        if made is None:
            made = self._made[config.name] = _Made(*wanted, ForkserverClient(*wanted, 0))
        return made.client

    def retire(self, in_use: set[ForkserverClient]) -> None:
        """Ends those of versions that were replaced, but for these."""
        for made in self._old:
            if made.client not in in_use:
                made.client.kill()  # One that still imports would not stop before that is done.
        self._old = [made for made in self._old if made.client in in_use]

    def close(self) -> None:
        for made in (*self._made.values(), *self._old):
            made.client.kill()
        self._made, self._old = {}, []
