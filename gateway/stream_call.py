"""A call of Triton's ModelStreamInfer with one request, read to its end whoever goes away.

Triton 24.10 ends itself after some hundred calls that were cancelled. So whoever wants no more of
an answer has the decoder told; what still comes is read, and thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import grpc
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

FOREIGN = (InferenceServerException, grpc.RpcError)
ROOM = 16
"""Parts that wait for a client who reads slowly; more of them wait in Triton."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds until it is said again: at first the decoder may not know of the stream yet."""
LEAVING_SECONDS = 30.0
"""For a call that was left; what has not ended by then is cancelled."""


class StreamCall:
    """
    Args:
        request: what tritonclient's `stream_infer` takes.
        tell: says that nobody wants more of this answer; it may fail.
    """

    def __init__(
        self,
        client: InferenceServerClient,
        request: Mapping[str, Any],
        tell: Callable[[], Awaitable[None]],
    ) -> None:
        self._tell = tell
        self._found: asyncio.Queue[Any] = asyncio.Queue(ROOM)
        self._is_left = False
        self._call = client.stream_infer(_only(request))
        # A task of its own: gRPC cancels a call when the task that reads it is cancelled.
        self._reading = asyncio.create_task(self._read())

    async def next(self) -> Any | None:
        """tritonclient's next result; None at the end. Raises what ended it, FOREIGN mostly."""
        found = await self._found.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def leave(self) -> None:
        """Returns when the call has ended, at once where it had."""
        self._is_left = True
        while not self._found.empty():  # Or the reader waits for room.
            self._found.get_nowait()
        try:
            async with asyncio.timeout(LEAVING_SECONDS):
                await self._tell_until_it_ends()
        except TimeoutError:
            self._reading.cancel()
            self._call.cancel()

    async def _tell_until_it_ends(self) -> None:
        pause = FIRST_PAUSE
        while True:
            await asyncio.wait([self._reading], timeout=pause)
            if self._reading.done():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_PAUSE):
                    await self._tell()
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _read(self) -> None:
        end: Exception | None = None
        try:
            async for result, error in self._call:
                await self._put(error or result)  # An error ends the answer, and not the call.
        except Exception as error:  # Whoever waits for a part must hear of it.
            end = error
        await self._put(end)

    async def _put(self, found: Any) -> None:
        if not self._is_left:
            await self._found.put(found)


async def _only(request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield dict(request)
