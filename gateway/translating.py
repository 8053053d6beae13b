"""Triton's errors, as our clients are told them. What those of a stream are, which come without a
status: clients/stream_errors.py."""

from __future__ import annotations

import re
from collections.abc import Mapping

import grpc
from tritonclient.utils import InferenceServerException

from clients.stream_errors import UNKNOWN, status_and_text
from gateway.errors import ApiError

FULL = "the queue is full", "Exceeds maximum queue size"
RESTRICTED = "protocol is restricted"
NOT_REACHED = "failed to connect", "Connection refused", "Socket closed", "recvmsg", "DNS"
RETRY_SECONDS = 1
_CONTEXT = re.compile(r"has \d+ tokens, .* the model's context has \d+")
_PARAMETER = re.compile(r"(?:parameter|unknown parameter) '(\w+)'|^'(\w+)' has the id")
_TENSOR = re.compile(r"\b[A-Z]+(?:_[A-Z]+)*\b")
Names = Mapping[str, str]
"""The client's word for each tensor and parameter of Triton that has another."""


def translated(error: Exception, names: Names) -> ApiError:
    """Of what tritonclient or gRPC has raised."""
    status, text = _parts(error)
    if status == "INVALID_ARGUMENT":
        return _invalid(text, names)
    if status == "UNAVAILABLE":
        return _unavailable(text)
    if status == "NOT_FOUND":
        return ApiError(404, "model_not_found", text, "model")
    return ApiError(500, "internal_error", text)


def _parts(error: Exception) -> tuple[str, str]:
    """gRPC's status and the text, which says what the status does not."""
    if isinstance(error, grpc.RpcError):
        status, text = error.code().name, error.details() or ""
    else:
        assert isinstance(error, InferenceServerException)
        status = str(error.status() or UNKNOWN).removeprefix("StatusCode.")
        text = str(error.message())
    said, text = status_and_text(text)
    return said if status == UNKNOWN else status, text


def _invalid(text: str, names: Names) -> ApiError:
    if _CONTEXT.search(text):
        return ApiError(400, "context_length_exceeded", text, names.get("INPUT_IDS", "messages"))
    said = _PARAMETER.search(text)
    name = (said[1] or said[2]) if said else None
    tensors = (names[word] for word in _TENSOR.findall(text) if word in names)
    param = names.get(name, name) if name else next(tensors, None)
    return ApiError(400, "invalid_value", text, param)


def _unavailable(text: str) -> ApiError:
    if any(each in text for each in FULL):
        return ApiError(429, "rate_limit_exceeded", text, retry_after=RETRY_SECONDS)
    if RESTRICTED in text:
        why = "the gateway does not have Triton's ADMIN_TOKEN, so it cannot know the models"
        return ApiError(503, "gateway_not_allowed", why)
    if any(each in text for each in NOT_REACHED):
        text = "Triton cannot be reached now; try again"
    return ApiError(503, "not_available", text, retry_after=RETRY_SECONDS)
