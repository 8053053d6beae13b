"""The token that agents and exchange have in common."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

from ..model.errors import PythonMpError

VARIABLE = "AGENT_TOKEN"
_LEAST = 16


class TokenMissing(PythonMpError):
    """There is none, or none that is worth the name."""


def read_token(
    file: Path | None, environment: MutableMapping[str, str], *, is_local: bool
) -> bytes:
    """The one in the file, else in AGENT_TOKEN, which ranks need not know and so is removed from
    there, else, on loopback, none.

    Raises:
        TokenMissing: other hosts are to be reached without one, or it is too short.
        OSError: the file cannot be read.
    """
    text = file.read_text() if file else environment.pop(VARIABLE, "")
    token = text.strip().encode()
    if not token and not file and is_local:
        return b""
    if len(token) < _LEAST:
        raise TokenMissing(
            f"hosts need one token of at least {_LEAST} characters in common: put it into"
            f" {VARIABLE} or a file (--token-file), as `openssl rand -hex 32` makes one"
        )
    return token
