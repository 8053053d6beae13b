"""What a client is told, in OpenAI's shape: docs/openai.md has the table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

INVALID, SERVER = "invalid_request_error", "server_error"
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


class ApiError(Exception):
    """
    Args:
        status: of HTTP.
        param: the field that is wrong, as `messages[0].content`.
        retry_after: seconds until it may be asked again.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        *,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.body = {"message": message, "type": _type(status), "param": param, "code": code}
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"

    @property
    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.body}, self.status, self.headers)


def install(app: FastAPI) -> None:
    """Every error of the application is an ApiError to its client."""

    async def said(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return invalid_body(error.errors()[0]).response

    async def no_route(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(
            error.status_code, "invalid_body"
        )
        text = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, code, text).response

    async def unexpected(*_: object) -> JSONResponse:
        return ApiError(500, "internal_error", "the gateway failed; its log says why").response

    app.add_exception_handler(ApiError, said)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, no_route)
    app.add_exception_handler(Exception, unexpected)


def invalid_body(found: Mapping[str, Any]) -> ApiError:
    """Of one of pydantic's errors. Own ones name their `param` in the context."""
    kind, text = str(found["type"]), str(found["msg"])
    if kind == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is not JSON: {found['ctx']['error']}")
    param = found.get("ctx", {}).get("param") or _path(found["loc"][1:])
    if not param:
        return ApiError(400, "invalid_body", "the body must be a JSON object")
    code = _CODES.get(kind) or (kind if kind.startswith("unsupported") else "invalid_value")
    if kind.endswith("_type"):
        code = "invalid_type"
    return ApiError(400, code, text if text.startswith(param) else f"{param}: {text}", param)


def _path(loc: Sequence[int | str]) -> str:
    """("messages", 0, "role") is messages[0].role."""
    return re.sub(r"\.(\[)", r"\1", ".".join(f"[{i}]" if type(i) is int else str(i) for i in loc))


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return SERVER if status >= 500 else INVALID
