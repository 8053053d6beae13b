"""Answers of several choices, whole or as events: the same for conversations and for texts."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from gateway.event_stream import Events
from gateway.generation_body import GenerationBody
from gateway.leaving import unless_gone
from gateway.text_streams import Part, Parts, joined, merged, pieces

Json = dict[str, Any]
Indexed = AsyncGenerator[tuple[int, Part], None]


class Style(Protocol):
    """How an endpoint writes a choice. One for each request, as it may count."""

    prefix: str
    whole_object: str
    event_object: str

    def whole(self, index: int, part: Part) -> Json: ...
    def begin(self, index: int) -> Json | None: ...
    def event(self, index: int, part: Part) -> Json: ...


async def answer(
    request: Request, body: GenerationBody, streams: Sequence[Parts], style: Style
) -> Response:
    """
    Args:
        streams: `n` of `body` for each prompt.
    """
    parts = merged(streams)
    envelope = {
        "id": f"{style.prefix}-{uuid.uuid4().hex}",
        "object": style.event_object if body.stream else style.whole_object,
        "created": int(time.time()),
        "model": body.model,
    }
    if not body.stream:
        found = await unless_gone(request, _whole(parts, len(streams)))
        written = [style.whole(index, part) for index, part in enumerate(found)]
        return JSONResponse({**envelope, "choices": written, "usage": usage(found, body.n)})
    try:
        first = await unless_gone(request, anext(parts))  # What is refused has a status of its own.
    except BaseException:
        await parts.aclose()
        raise
    return Events(_events(first, parts, envelope, body, style, len(streams)))


async def _whole(parts: Indexed, streams: int) -> list[Part]:
    found: list[list[Part]] = [[] for _ in range(streams)]
    async with aclosing(parts):
        async for index, part in parts:
            found[index].append(part)
    return [joined(each) for each in found]


async def _events(
    first: tuple[int, Part],
    rest: Indexed,
    envelope: Json,
    body: GenerationBody,
    style: Style,
    streams: int,
) -> AsyncGenerator[Json, None]:
    """`usage` stands in all of them where it is wanted, and is null but in the last."""
    last = [Part("")] * streams
    wants_usage = body.stream_options.include_usage
    frame = envelope | ({"usage": None} if wants_usage else {})
    async with aclosing(rest):
        for index in range(streams):
            if begun := style.begin(index):
                yield {**frame, "choices": [begun]}
        async for index, part in _with(first, rest):
            last[index] = part
            for piece in pieces(part):
                yield {**frame, "choices": [style.event(index, piece)]}
    if wants_usage:
        yield {**frame, "choices": [], "usage": usage(last, body.n)}


async def _with(first: tuple[int, Part], rest: Indexed) -> Indexed:
    yield first
    async for each in rest:
        yield each


def usage(answers: Sequence[Part], choices: int) -> Json:
    """A prompt counts once, however many choices it has."""
    prompts = answers[::choices]
    prompt, cached = sum(each.prompt for each in prompts), sum(each.cached for each in prompts)
    generated = sum(each.generated for each in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
