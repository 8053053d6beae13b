"""What stands before a text, by the name that a client asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from .text_input import TextError


class Prompts:
    """Those of a version's settings: `prompts` by name, and the name of the `default_prompt`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._known: Mapping[str, str] = settings.get("prompts", {})
        self._default: str = self._known.get(settings.get("default_prompt") or "", "")

    def before(self, texts: Sequence[str], request: Any) -> list[str]:
        """Each text behind its row's prompt: the default one where the request has no PROMPT, none
        where that is empty.

        Raises:
            TextError: a name is not known.
        """
        given = pb_utils.get_input_tensor_by_name(request, "PROMPT")
        if given is None:
            return [self._default + text for text in texts]
        names = given.as_numpy().ravel()
        return [
            self._named(index, name) + text
            for index, (name, text) in enumerate(zip(names, texts, strict=True))
        ]

    def _named(self, index: int, name: bytes) -> str:
        found = self._known.get(name.decode(errors="replace"), "" if not name else None)
        if found is None:
            known = ", ".join(self._known) or "none"
            said = name[:80].decode(errors="replace")
            raise TextError(f"PROMPT[{index}] is {said!r}; the model's prompts are: {known}.")
        return found
