"""For the small steps of an ensemble, Python models of Triton's own: requests that share a call of
`execute` share no fault. An exception out of `execute` would fail all of them, with a path of the
server in the text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

log = logging.getLogger("python_mp")
Item = TypeVar("Item")
Result = TypeVar("Result")
Told = Callable[[str, str], str]
"""What a client is told of an error's status and text."""
UNEXPECTED = "The request could not be answered; the server's log says why."


def text_only(_: str, text: str) -> str:
    """Triton says the status."""
    return text


def each(
    requests: Sequence[Any],
    answer: Callable[[Any], list[Any]],
    refusal: type[Exception],
    told: Told = text_only,
) -> list[Any]:
    """The response to each request: the tensors that `answer` returns, or its error.

    Args:
        refusal: what `answer` raises for a request that is not served; clients get its sentence, as
            bad input where it has no `status`.
        told: what they get of its status and its sentence; for the steps of an ensemble that
            answers in parts, `in_parts`.
    """
    return [_response(partial(answer, request), refusal, told) for request in requests]


def together(
    requests: Sequence[Any],
    read: Callable[[Any], list[Item]],
    compute: Callable[[list[Item]], Sequence[Result]],
    write: Callable[[list[Result]], list[Any]],
    refusal: type[Exception],
) -> list[Any]:
    """The same, where one call of `compute` serves the items of all requests. Where that raises, it
    is called for each request alone."""
    found = [_caught(partial(read, request), refusal) for request in requests]
    good = [items for items in found if isinstance(items, list)]
    shared = _shared(good, compute)

    def answer(items: list[Item]) -> list[Any]:
        return write(list(compute(items)) if shared is None else shared.pop(0))

    return [
        _response(partial(answer, items), refusal) if isinstance(items, list) else items
        for items in found
    ]


def _shared(
    good: Sequence[list[Item]], compute: Callable[[list[Item]], Sequence[Result]]
) -> list[list[Result]] | None:
    """The results by request; None where they cannot be had in one call."""
    try:
        rows = iter(compute([item for items in good for item in items]) if good else ())
        return [[next(rows) for _ in items] for items in good]
    except BaseException:  # a panic in Rust is no Exception
        return None


def _response(
    answer: Callable[[], list[Any]], refusal: type[Exception], told: Told = text_only
) -> Any:
    import triton_python_backend_utils as pb_utils

    return _caught(lambda: pb_utils.InferenceResponse(answer()), refusal, told)


def _caught(work: Callable[[], Any], refusal: type[Exception], told: Told = text_only) -> Any:
    """What `work` returns, or the response that says why there is nothing."""
    import triton_python_backend_utils as pb_utils

    try:
        return work()
    except refusal as error:
        status, text = getattr(error, "status", "INVALID_ARG"), str(error)
    except BaseException:
        log.exception("a request could not be answered")
        status, text = "INTERNAL", UNEXPECTED
    failure = pb_utils.TritonError(told(status, text), getattr(pb_utils.TritonError, status))
    return pb_utils.InferenceResponse(error=failure)
