"""How long is waited for Triton: as long as it lives, and says something now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.errors import ApiError

RETRY_SECONDS = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """In seconds.

    Attributes:
        triton: for which Triton may not say that it lives, when it is asked.
        answer: for which a model may say nothing: until its answer, or its next part.
    """

    triton: float = 10.0
    answer: float = 300.0


class Patience:
    """
    Args:
        is_live: asks Triton; may raise anything.
    """

    def __init__(self, limits: Limits, is_live: Callable[[], Awaitable[object]]) -> None:
        self._limits = limits
        self._is_live = is_live
        self._asking: asyncio.Task[None] | None = None

    async def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What it gives. Raises ApiError, 504 or 503, where it takes too long, and ends it."""
        task, loop = asyncio.create_task(work), asyncio.get_running_loop()
        until = loop.time() + self._limits.answer
        try:
            while (left := until - loop.time()) > 0:
                await asyncio.wait([task], timeout=min(left, self._limits.triton))
                if task.done():
                    return task.result()
                await self._ask()
        finally:
            task.cancel()
        told = f"the model has said nothing for {self._limits.answer:g} s"
        raise ApiError(504, "timeout", told)

    async def triton_only(self, work: Awaitable[T]) -> T:
        """What it gives, of work that no model has a part in. Raises ApiError."""
        try:
            async with asyncio.timeout(self._limits.triton):
                return await work
        except TimeoutError:
            told = f"Triton has said nothing for {self._limits.triton:g} s; try again"
            raise ApiError(503, "not_available", told, retry_after=RETRY_SECONDS) from None

    async def _ask(self) -> None:
        """Whether Triton lives; all who wait have the same question."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._hear())
        await asyncio.shield(self._asking)

    async def _hear(self) -> None:
        try:
            await self.triton_only(self._is_live())
        except ApiError:
            raise
        except Exception:
            return  # It is an answer; what is lost with the connection hears of that itself.
