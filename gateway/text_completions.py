"""POST /v1/completions: models of the task `generate` go on with a text."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from gateway import choices, text_streams
from gateway.bodies import only, unsupported
from gateway.choices import Json
from gateway.generation_body import MOST_LOGPROBS, GenerationBody, Tokens
from gateway.text_streams import Part
from gateway.upstream import Inputs, texts

router = APIRouter()
MOST_PROMPTS, USUAL_TOKENS = 16, 16


def _prompt(value: Any) -> Any:
    is_ids = isinstance(value, list) and all(type(i) is int and 0 <= i < 1 << 31 for i in value)
    if not value or not (isinstance(value, str) or is_ids):
        raise ValueError("a prompt is a text, or a list of token ids, and not empty")
    return value


Prompt = Annotated[str | list[int], PlainValidator(_prompt)]


def _prompts(given: Any) -> Any:
    """A text, or a list of ids, may stand for a list of one."""
    if isinstance(given, list) and given and all(type(each) is int for each in given):
        return [given]
    return [given] if isinstance(given, str) else given


class Continuation(GenerationBody):
    prompt: Annotated[
        list[Prompt],
        Field(min_length=1, max_length=MOST_PROMPTS),
        BeforeValidator(_prompts),
    ]
    max_tokens: Tokens = USUAL_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: int | None = None
    echo: Annotated[Any, only(False)] = None
    suffix: Annotated[Any, only("")] = None

    @model_validator(mode="after")
    def _fits(self) -> Continuation:
        if self.best_of not in (None, self.n):
            raise unsupported("best_of is as many as n here; leave it out", "best_of")
        return self

    def logprobs_wanted(self) -> int | None:
        return self.logprobs

    def inputs(self) -> list[Inputs]:
        return [
            {"TEXT": texts(prompt)}
            if isinstance(prompt, str)
            else {"INPUT_IDS": np.array([prompt], np.int32)}
            for prompt in self.prompt
        ]


@router.post("/v1/completions")
async def complete(body: Continuation, request: Request) -> Response:
    model = await request.app.state.registry.find(body.model, "generate")
    triton = request.app.state.triton.named(TEXT="prompt", INPUT_IDS="prompt")
    streams = [
        text_streams.parts(triton, model, inputs, body.parameters(choice))
        for inputs in body.inputs()
        for choice in range(body.n)
    ]
    return await choices.answer(request, body, streams, Text(body.logprobs is not None))


class Text:
    """A choice with a text; it counts where tokens begin."""

    prefix = "cmpl"
    whole_object = event_object = "text_completion"

    def __init__(self, has_logprobs: bool) -> None:
        self._has_logprobs = has_logprobs
        self._offsets: dict[int, int] = {}

    def whole(self, index: int, part: Part) -> Json:
        has_logprobs = self._has_logprobs and (part.tokens or not part.text)
        return {
            "index": index,
            "text": part.text,
            "logprobs": self._logprobs(index, part) if has_logprobs else None,
            "finish_reason": part.finish_reason or None,
        }

    def begin(self, index: int) -> None:
        return None

    event = whole

    def _logprobs(self, index: int, part: Part) -> Json:
        offsets, at = [], self._offsets.get(index, 0)
        for token in part.tokens:
            offsets.append(at)
            at += len(token.text)
        self._offsets[index] = at
        return {
            "tokens": [token.text for token in part.tokens],
            "token_logprobs": [token.logprob for token in part.tokens],
            "top_logprobs": [dict(token.top) for token in part.tokens],
            "text_offset": offsets,
        }
