"""What bodies of all endpoints have in common: strict types, no unknown field, null as absent."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

TEXT_BYTES = 64 * 1024
"""Of one text that is embedded or ranked: what the models' first step takes."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """The official clients send null for what is not wanted."""
        if not isinstance(given, dict):
            return given
        for name, value in given.items():
            _check_text(name, value)
        return {name: value for name, value in given.items() if value is not None}


def _check_text(name: str, value: Any) -> None:
    """JSON may hold half a character, "\\ud800", which no text may, and nest without end."""
    try:
        json.dumps([name, value], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        why = "holds half a character"
    except RecursionError:
        why = "is nested too deep"
    else:
        return
    said = name.encode(errors="backslashreplace").decode()
    raise PydanticCustomError("invalid_text", "{why}", {"why": why, "param": said})


Unused: Any = Any
"""A field that changes nothing about an answer."""


def only(*values: Any) -> BeforeValidator:
    """Of a field of which this server knows these values only; others are refused by name."""

    def check(value: Any) -> Any:
        if value not in values:
            raise unsupported(f"is not supported here{_choice(values)}")
        return value

    return BeforeValidator(check)


def unsupported(text: str, param: str | None = None) -> PydanticCustomError:
    # Texts may hold braces, which it would take for names of the context.
    context = {"text": text, **({"param": param} if param else {})}
    return PydanticCustomError("unsupported_parameter", "{text}", context)


def _choice(values: tuple[Any, ...]) -> str:
    return (
        f", but for {' or '.join(map(repr, values))}; leave it out" if values else "; leave it out"
    )


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _short(text: str) -> str:
    if len(text.encode()) > TEXT_BYTES:
        raise ValueError(f"a text has at most {TEXT_BYTES} bytes")
    return text


Listed = BeforeValidator(_listed)
"""One text may stand for a list of one."""
Short = Annotated[str, StringConstraints(min_length=1), AfterValidator(_short)]
