"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Send

from gateway.errors import ApiError

log = logging.getLogger(__name__)
DONE = "data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # The latter for nginx.


class Events(StreamingResponse):
    """An event for each object, and one that ends them; or one with the error that came."""

    def __init__(self, objects: AsyncGenerator[dict[str, Any], None]) -> None:
        self._objects = objects
        super().__init__(_lines(objects), headers=HEADERS, media_type="text/event-stream")

    async def stream_response(self, send: Send) -> None:
        # A client that has gone is noticed wherever we wait; what Triton does for it ends at once.
        async with aclosing(self._objects):
            await super().stream_response(send)


async def _lines(objects: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for each in objects:
            yield _event(each)
    except ApiError as error:
        yield _event({"error": error.body})
    except Exception:
        log.exception("a stream has failed")
        failed = ApiError(500, "internal_error", "the gateway failed; its log says why")
        yield _event({"error": failed.body})
    else:
        yield DONE


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, separators=(',', ':'), ensure_ascii=False)}\n\n"
