"""Conversations as clients send them: JSON, as in OpenAI's chat completions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .text_input import TextError

ROLES = "system", "developer", "user", "assistant", "tool"
KEYS = (
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
)
MOST_SHOWN = 80


@dataclass(frozen=True)
class Conversation:
    """
    Attributes:
        messages: each with its `role` and, mostly, its `content`, a text.
        tools: what the model is told of functions that it may call, JSON schemas.
        add_generation_prompt: whether the template begins the answer.
        continue_final_message: whether the answer goes on with the last message.
        chat_template_kwargs: what the template is given beside it, such as enable_thinking.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


def read(text: str) -> Conversation:
    """Of a list of messages, or an object with the KEYS.

    Raises:
        TextError: it is none; the sentence says where.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TextError(f"MESSAGES is not valid JSON: {error}.") from None
    said = {"messages": said} if isinstance(said, list) else said
    if not isinstance(said, dict):
        raise TextError("MESSAGES must be a list of messages, or an object with `messages`.")
    for problem in _problems(said):
        raise TextError(f"MESSAGES{problem}.")
    if said.get("continue_final_message"):
        said.setdefault("add_generation_prompt", False)
    messages = [dict(each, content=_text(each.get("content"))) for each in said["messages"]]
    return Conversation(**{**said, "messages": messages})


def _problems(said: Mapping[str, Any]) -> Iterator[str]:
    for key in said:
        if key not in KEYS:
            yield f" has {_shown(key)}; it can have {', '.join(KEYS)}"
    messages = said.get("messages")
    if not isinstance(messages, list) or not messages:
        yield ": messages must be a list with one message at least"
    else:
        for index, message in enumerate(messages):
            yield from (f"[{index}]{problem}" for problem in _wrong(message))
    tools = said.get("tools")
    if tools is not None and not _are_objects(tools):
        yield ": tools must be a list of objects"
    for key in KEYS[2:4]:
        if not isinstance(said.get(key, True), bool):
            yield f": {key} must be true or false"
    if said.get("add_generation_prompt") and said.get("continue_final_message"):
        yield " has add_generation_prompt and continue_final_message: only one of them can be"
    if not isinstance(said.get("chat_template_kwargs", {}), dict):
        yield ": chat_template_kwargs must be an object"
    elif taken := sorted(
        {"messages", "documents", *KEYS} & {*said.get("chat_template_kwargs", {})}
    ):
        yield f": chat_template_kwargs must not have {taken[0]}"


def _wrong(message: object) -> Iterator[str]:
    if not isinstance(message, dict):
        yield ' is no message: {"role": ..., "content": ...}'
        return
    if not isinstance(message.get("role"), str):
        yield f" has no role; roles are {', '.join(ROLES)}"
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        yield " has no content"
    if isinstance(content, list):
        for index, part in enumerate(content):
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else part
                yield f".content[{index}] is {_shown(kind)}; only texts are read here"
    elif content is not None and not isinstance(content, str):
        yield ".content must be a text, or a list of parts that are texts"


def _text(content: Any) -> Any:
    """Parts joined by line breaks, as vLLM does: most templates know only texts."""
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _shown(value: object) -> str:
    return repr(value)[:MOST_SHOWN]
