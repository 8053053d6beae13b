"""POST /v1/chat/completions: models of the task `generate`."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BeforeValidator, Field, model_validator

from gateway import choices, text_streams
from gateway.bodies import Unused, only, unsupported
from gateway.choices import Json
from gateway.generation_body import MOST_LOGPROBS, GenerationBody, Tokens
from gateway.text_streams import Part
from gateway.token_texts import Token
from gateway.upstream import texts

router = APIRouter()
KEPT = {"role", "content", "name"}
EMPTY: tuple[Any, ...] = (None, [], {})


def _messages(given: Any) -> Any:
    """Roles and the rest are judged by the model's own template."""
    if not isinstance(given, list):
        return given
    return [_message(f"messages[{index}]", each) for index, each in enumerate(given)]


def _message(path: str, message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    for key, value in message.items():
        if key not in KEPT and value not in EMPTY:
            raise unsupported(f"{path}.{key} is not supported here; leave it out", f"{path}.{key}")
    content = message.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            param = f"{path}.content[{index}]"
            raise unsupported(f"{param} is {kind!r:.40}; only parts of type 'text' are read", param)
    return {key: message[key] for key in sorted(KEPT & message.keys())}


class Conversation(GenerationBody):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1), BeforeValidator(_messages)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none")] = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none")] = None
    response_format: Annotated[Any, only({"type": "text"})] = None
    modalities: Annotated[Any, only(["text"])] = None
    audio: Annotated[Any, only()] = None
    prediction: Annotated[Any, only()] = None
    web_search_options: Annotated[Any, only()] = None
    moderation: Annotated[Any, only()] = None
    reasoning_effort: Annotated[Any, only("none")] = None
    verbosity: Annotated[Any, only("medium")] = None
    store: Annotated[Any, only(False)] = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    parallel_tool_calls: Unused = None
    metadata: Unused = None
    safety_identifier: Unused = None
    prompt_cache_key: Unused = None
    prompt_cache_retention: Unused = None

    @model_validator(mode="after")
    def _fits(self) -> Conversation:
        if self.top_logprobs is not None and not self.logprobs:
            raise unsupported("top_logprobs is for logprobs: true; say that, too", "top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise unsupported("max_tokens is max_completion_tokens; leave it out", "max_tokens")
        return self

    def tokens_wanted(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def logprobs_wanted(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self) -> str:
        """As the ensemble's first step reads it."""
        names = "add_generation_prompt", "continue_final_message", "chat_template_kwargs"
        given = {name: getattr(self, name) for name in ("messages", *names)}
        return json.dumps({name: value for name, value in given.items() if value is not None})


@router.post("/v1/chat/completions")
async def chat(body: Conversation, request: Request) -> Response:
    model = await request.app.state.registry.find(body.model, "generate")
    limit = "max_completion_tokens" if body.max_tokens is None else "max_tokens"
    triton = request.app.state.triton.named(
        MESSAGES="messages", INPUT_IDS="messages", max_tokens=limit
    )
    inputs = {"MESSAGES": texts(body.conversation())}
    streams = [
        text_streams.parts(triton, model, inputs, body.parameters(choice))
        for choice in range(body.n)
    ]
    return await choices.answer(request, body, streams, Chat(body.logprobs))


class Chat:
    """A choice with a message, or with what is added to it."""

    prefix = "chatcmpl"
    whole_object, event_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, has_logprobs: bool) -> None:
        self._has_logprobs = has_logprobs

    def whole(self, index: int, part: Part) -> Json:
        message = {"role": "assistant", "content": part.text, "refusal": None}
        return self._choice(index, part, message=message)

    def begin(self, index: int) -> Json:
        return self._choice(index, Part(""), delta={"role": "assistant", "content": ""})

    def event(self, index: int, part: Part) -> Json:
        return self._choice(index, part, delta={} if part.finish_reason else {"content": part.text})

    def _choice(self, index: int, part: Part, **said: Json) -> Json:
        found = {"content": [*map(_shown, part.tokens)], "refusal": None}
        logprobs = found if self._has_logprobs and (part.tokens or "message" in said) else None
        reason = part.finish_reason or None
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}


def _shown(token: Token) -> Json:
    top = [_named(text, logprob) for text, logprob in token.top]
    return _named(token.text, token.logprob) | {"top_logprobs": top}


def _named(text: str, logprob: float) -> Json:
    """A token that ends within a character has bytes that are not to be had of its text."""
    is_whole = "\ufffd" not in text
    return {
        "token": text,
        "logprob": logprob,
        "bytes": [*text.encode()] if is_whole else None,
    }
