"""The front's rules a second time, in Python: which requests may pass."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import InferParameter, ModelInferRequest

MAX_DEPTH = 24


class Refused(Exception):
    """It must not pass."""


def json_passes(body: bytes, header: str | None = None) -> bool:
    """Whether this body may go on, with that Inference-Header-Content-Length."""
    try:
        _check_request(json.loads(_json_part(body, header), **STRICT), len(body))
    except (Refused, json.JSONDecodeError, RecursionError):
        return False
    return True


def _json_part(body: bytes, header: str | None) -> str:
    if not header:
        return body.decode(errors="replace")
    if not (header.isascii() and header.isdigit() and int(header) <= len(body)):
        raise Refused
    return body[: int(header)].decode(errors="replace")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    _need(len(found) == len(pairs))
    return found


def _no_constant(_: str) -> None:
    raise Refused


STRICT: Any = {"object_pairs_hook": _unique, "parse_constant": _no_constant}


def _need(holds: bool) -> None:
    if not holds:
        raise Refused


def _check_request(request: Any, size: int) -> None:
    parts = [_part(request)]
    _need(_depth(request) <= MAX_DEPTH)
    inputs, outputs = (request.get(key, []) for key in ("inputs", "outputs"))
    _need(isinstance(inputs, list) and isinstance(outputs, list) and len(inputs) <= 64)
    parts += map(_part, [*inputs, *outputs])
    _need(not any("classification" in each.get("parameters", {}) for each in outputs))
    _need(_keys(request) == sum(parts))
    for each in inputs:
        _need(_is_shape(each.get("shape"), size))


def _part(holder: Any) -> int:
    """The keys of a request, an input or an output, and of its parameters."""
    _need(isinstance(holder, dict))
    parameters = holder.get("parameters", {})
    _need(isinstance(parameters, dict) and not isinstance(parameters.get("sequence_id"), str))
    _need(not any(name.startswith("shared_memory_") for name in parameters))
    return len(holder) + len(parameters)


def _keys(value: Any) -> int:
    """All keys, wherever they are."""
    if isinstance(value, dict):
        return len(value) + sum(map(_keys, value.values()))
    return sum(map(_keys, value)) if isinstance(value, list) else 0


def _depth(value: Any) -> int:
    """How many lists are inside each other; of 1000 and more, json.loads says RecursionError."""
    if isinstance(value, dict):
        return max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _is_shape(shape: Any, size: int) -> bool:
    whole = isinstance(shape, list) and all(
        isinstance(dim, int | float) and not isinstance(dim, bool) and dim == dim // 1 and dim >= 1
        for dim in shape
    )
    return whole and 1 <= len(shape) <= 16 and math.prod(map(int, shape)) <= size


def message_passes(message: bytes) -> bool | None:
    """Whether this ModelInferRequest may go on; None where it cannot be read."""
    try:
        request = ModelInferRequest.FromString(message)
    except DecodeError:
        return None
    holders: Iterable[Any] = [request, *request.inputs, *request.outputs]
    return (
        len(request.inputs) <= 64
        and all(_is_shape(list(each.shape), len(message) + 5) for each in request.inputs)
        and all(_may(*item) for holder in holders for item in holder.parameters.items())
        and not any("classification" in each.parameters for each in request.outputs)
    )


def _may(name: str, value: InferParameter) -> bool:
    is_string = value.WhichOneof("parameter_choice") == "string_param"
    return not (name == "sequence_id" and is_string) and not name.startswith("shared_memory_")
