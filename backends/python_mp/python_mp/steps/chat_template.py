"""A conversation as the text that a model was trained on, by its own template in Jinja. It is
rendered by transformers, in a sandbox."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from ..model.errors import for_clients
from .conversation import ROLES, Conversation
from .text_input import TextError


class ChatTemplate:
    """Of a version's settings: `chat_template`, one or several by name, and the `special_tokens`
    that it may use."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        said = settings.get("chat_template")
        self._templates: Mapping[str, str] = (
            {"default": said} if isinstance(said, str) else said or {}
        )
        self._tokens: Mapping[str, Any] = settings.get("special_tokens", {})

    def text(self, conversation: Conversation) -> str:
        """
        Raises:
            TextError: the model has no template, or it refuses the conversation.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._of(conversation)
        said = asdict(_with_known_roles(conversation, template))
        said |= {**self._tokens, **said.pop("chat_template_kwargs")}
        try:
            texts: Any = render_jinja_template(
                [said.pop("messages")], chat_template=template, **said
            )[0]
        except Exception as error:  # whatever a template may raise
            raise TextError(
                f"The model's chat template refuses the conversation: {for_clients(error)}."
            ) from None
        return str(texts[0])

    def _of(self, conversation: Conversation) -> str:
        name = "tool_use" if conversation.tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise TextError(
                "The model has no chat template, so it reads no MESSAGES: send the prompt as TEXT."
            )
        return self._templates[name]


def _with_known_roles(conversation: Conversation, template: str) -> Conversation:
    """`developer`, OpenAI's newer word, is `system` where a template does not know it.

    Raises:
        TextError: a role is neither known nor named by the template, which would pass it over.
    """
    named = {*re.findall(r"""['"](\w+)['"]""", template)}
    messages = []
    for index, message in enumerate(conversation.messages):
        role = message["role"]
        if role not in named | {*ROLES}:
            raise TextError(
                f"MESSAGES[{index}] has the role {role[:80]!r}; roles are {', '.join(ROLES)}."
            )
        is_new = role == "developer" and role not in named
        messages.append({**message, "role": "system"} if is_new else message)
    return replace(conversation, messages=messages)
