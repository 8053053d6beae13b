"""Which models there are, as Triton says: ensembles, by their parameter `task`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.errors import ApiError
from gateway.upstream import Triton

Task = Literal["embed", "rerank", "generate"]
PATHS: Mapping[str, str] = {
    "embed": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "generate": "/v1/chat/completions and /v1/completions",
}
"""Where the models of a task are asked."""
FRESH = 1.0  # seconds for which Triton is not asked again
RETRY_SECONDS = 2


@dataclass(frozen=True)
class Model:
    """
    Attributes:
        rows: at most, of one request.
        steps: names of the models that it chains, in their order.
    """

    name: str
    task: str
    rows: int
    steps: tuple[str, ...]


class Registry:
    """What it has read is a copy that is soon too old, and no state."""

    def __init__(self, triton: Triton) -> None:
        self._triton = triton
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._models: dict[str, Model] = {}
        self._reasons: dict[str, str] = {}

    async def all(self) -> list[Model]:
        """Those that can be asked now. All who ask meanwhile wait for the same answer."""
        if time.monotonic() - self._read_at > FRESH:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            await asyncio.shield(self._reading)
        return sorted(self._models.values(), key=lambda model: model.name)

    async def find(self, name: str, task: Task) -> Model:
        """Raises ApiError where there is no such model, or it is not ready, or of another task."""
        await self.all()
        model = self._models.get(name)
        if model is not None and model.task == task:
            return model
        if model is not None:
            told = f"the model '{name}' is not for this: ask it at {PATHS[model.task]}"
            raise ApiError(404, "model_not_found", told, "model")
        if name in self._reasons:
            told = f"the model '{name}' is not ready: {self._reasons[name]}"
            raise ApiError(503, "model_not_ready", told, "model", retry_after=RETRY_SECONDS)
        fit = ", ".join(each.name for each in self._models.values() if each.task == task)
        told = f"there is no model '{name:.100}' here for this; there is {fit or 'none'}"
        raise ApiError(404, "model_not_found", told, "model")

    async def _read(self) -> None:
        await self._triton.patience.triton_only(self._ask())
        self._read_at = time.monotonic()

    async def _ask(self) -> None:
        index = await self._triton.index()
        ready = {entry.name for entry in index if entry.state == "READY"}
        self._reasons = {
            entry.name: entry.reason or entry.state.lower() or "not loaded"
            for entry in index
            if entry.name not in ready and entry.reason != "unloaded"
        }
        found = await asyncio.gather(*map(self._model, sorted(ready)))
        self._models = {model.name: model for model in found if model is not None}

    async def _model(self, name: str) -> Model | None:
        try:
            config = await self._triton.config(name)
        except ApiError as error:  # It, or Triton, went away meanwhile.
            self._reasons[name] = str(error)
            return None
        task = config.parameters["task"].string_value if "task" in config.parameters else ""
        if config.platform != "ensemble" or task not in PATHS:
            return None
        steps = tuple(step.model_name for step in config.ensemble_scheduling.step)
        return Model(name, task, max(1, config.max_batch_size), steps)
