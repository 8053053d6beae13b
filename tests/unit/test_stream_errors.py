"""Every kind of error that comes on a stream, which has no status there but in its text."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tritonclient.utils import InferenceServerException

from clients.stream_errors import OURS, status_and_text, with_status
from gateway.translating import translated
from python_mp.model import errors
from python_mp.model.errors import (
    InvalidInput,
    PythonMpError,
    RequestFailed,
    TimedOut,
    Unavailable,
    in_parts,
)

CASES: list[tuple[str | PythonMpError, int, str, str | None]] = [
    (Unavailable("the queue is full (256 requests); try again"), 429, "rate_limit_exceeded", None),
    (Unavailable("its ranks are being restarted"), 503, "not_available", None),
    (Unavailable("the model is being stopped"), 503, "not_available", None),
    (TimedOut("the request has waited longer than its time-out"), 503, "not_available", None),
    (RequestFailed("this request has ended two groups of ranks"), 500, "internal_error", None),
    (
        InvalidInput("the prompt has 9 tokens, with max_tokens 8 17; the model's context has 16"),
        400,
        "context_length_exceeded",
        "messages",
    ),
    (InvalidInput("parameter 'top_k' is 'few'; it must be 0"), 400, "invalid_value", "top_k"),
    (InvalidInput("MESSAGES is not valid JSON: it ends."), 400, "invalid_value", "messages"),
    ("Request for unknown model: 'a' is not found", 404, "model_not_found", "model"),
    ("Request for unknown model: 'a' has no available versions", 404, "model_not_found", "model"),
    (
        "Request for unknown model: 'a' version 1 is not at ready state",
        503,
        "not_available",
        None,
    ),
    ("expected 1 inputs but got 0 inputs for model 'a'", 400, "invalid_value", None),
    (
        "expected number of inputs between 1 and 2 but got 0 inputs for model 'a'",
        400,
        "invalid_value",
        None,
    ),
    ("unexpected inference input 'X' for model 'a'", 400, "invalid_value", None),
    ("unexpected shape for input 'X' for model 'a'. Expected [-1]", 400, "invalid_value", None),
    ("inference request batch-size must be <= 64 for 'a'", 400, "invalid_value", None),
    ("inference input 'X' data-type is 'FP32', but model 'a'", 400, "invalid_value", None),
    ("invalid value for 'priority', expected value >= 0.", 400, "invalid_value", None),
    ("Exceeds maximum queue size", 429, "rate_limit_exceeded", None),
    ("Request timeout expired", 503, "not_available", None),
    ("Server is stopping, scheduler for model has stopped accepting", 503, "not_available", None),
    (
        "Failed to process the request(s) for model instance 'a_0_0', message: Stub process"
        " 'a_0_0' is not healthy.",
        503,
        "not_available",
        None,
    ),
    ("something that nobody has thought of", 500, "internal_error", None),
    ("NONSENSE: something else", 500, "internal_error", None),
]
"""What a backend of ours raises, or Triton 24.10 says itself, and what OpenAI's client is told."""
PLACES = "", "[request id: 7] ", "[request id: <id_unknown>] in ensemble 'a', ", "in ensemble 'a', "


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("error", "status", "code", "param"), CASES, ids=str)
def test_kinds(
    place: str, error: str | PythonMpError, status: int, code: str, param: str | None
) -> None:
    text = error if isinstance(error, str) else in_parts(error.status, str(error))
    names = {"MESSAGES": "messages", "INPUT_IDS": "messages"}
    told = translated(InferenceServerException(place + text), names)
    assert (told.status, told.body["code"], told.param) == (status, code, param)
    assert told.body["message"] in (str(error), "Triton cannot be reached now; try again")
    assert ("retry-after" in told.headers) == (status in (429, 503))


def kinds(kind: type[PythonMpError]) -> Iterator[type[PythonMpError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from kinds(each)


@pytest.mark.parametrize("kind", [*kinds(errors.PythonMpError)])
def test_any_error_of_ours_keeps_its_status(kind: type[PythonMpError]) -> None:
    """Whatever it says, be it what Triton would say, or another status."""
    for text in ("a sentence", "Exceeds maximum queue size", "UNAVAILABLE: or not", "", "a\nb"):
        said = in_parts(kind.status, text)
        assert status_and_text(said) == (OURS[kind.status], text)
        error = with_status(InferenceServerException(said))
        assert error.status() == f"StatusCode.{OURS[kind.status]}"
        assert with_status(error) is error
