"""What stands before every endpoint: the token, and a bound on bodies."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import ApiError
from server.token import same

MOST_BYTES = 16 << 20
PATIENCE = 64 << 20
"""Bytes that are read of a body that is too big: clients hear an answer only when they have sent
theirs."""
OPEN = "/health"
"""Asked without a token."""


class Guard:
    """
    Args:
        token: what clients send as `Authorization: Bearer`; without one everybody may ask.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = dict(scope["headers"])
            if scope["path"] != OPEN:
                self._check(headers.get(b"authorization", b"").decode("latin-1"))
            body = await _whole(receive)
        except ApiError as error:
            await error.response(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _again(body, receive), send)

    def _check(self, header: str) -> None:
        scheme, _, given = header.partition(" ")
        if self._token and not (scheme.lower() == "bearer" and same(given.strip(), self._token)):
            raise ApiError(401, "invalid_api_key", "the header Authorization has no valid token")


async def _whole(receive: Receive) -> bytes | None:
    """The body; None of a client that went away before its end."""
    body, size, has_more = bytearray(), 0, True
    while has_more and size <= PATIENCE:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        found, has_more = message.get("body", b""), message.get("more_body", False)
        size += len(found)
        if size <= MOST_BYTES:
            body += found
    if size > MOST_BYTES:
        raise ApiError(413, "body_too_large", f"a body has at most {MOST_BYTES} bytes")
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, and then what else comes: that the client has gone."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return waiting.pop() if waiting else await receive()

    return given
