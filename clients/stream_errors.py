"""What an error on a stream is. Of an error on a stream Triton hands on only the text; a client may
ask for its status (`triton_grpc_error`), but release 24.10 may end itself then."""

from __future__ import annotations

import re

from tritonclient.utils import InferenceServerException

_PLACE = re.compile(r"^(?:\[request id: [^\]]*\] |in ensemble '[^']*', )+")
_SAID = re.compile(r"^([A-Z_]+): ")
UNKNOWN = "INTERNAL"
OURS = {
    "INVALID_ARG": "INVALID_ARGUMENT",
    "UNAVAILABLE": "UNAVAILABLE",
    "CANCELLED": "CANCELLED",
    "INTERNAL": "INTERNAL",
}
"""gRPC's status, by the word that our backend puts before its text."""
TRITONS = {
    "UNAVAILABLE": (
        r"is not at ready state$",
        r"^Exceeds maximum queue size",
        r"^Request timeout",
        r"^Server is stopping|^Server not ready",
        r"Stub process '.*' is not healthy",  # It says INTERNAL; but the watcher brings it back.
    ),
    "NOT_FOUND": (r"^Request for unknown model",),
    "INVALID_ARGUMENT": (
        r"^expected .*inputs.* but got",
        r"^unexpected (?:inference (?:in|out)put|shape|explicit|'content'|number of string)",
        r"^inference (?:request batch-size|input '.*' data-type)",
        r"^input byte size mismatch|^unable to find data for input",
        r"^invalid value|^parameter keys starting with",
    ),
}
"""The same, by the words of Triton 24.10's own errors."""


def status_and_text(text: str) -> tuple[str, str]:
    """gRPC's name of the status, UNKNOWN where nothing says it; and the text without that, and
    without the request's id and the ensemble's name, which Triton puts before it."""
    text = _PLACE.sub("", text)
    said = _SAID.match(text)
    if said and said[1] in OURS:
        return OURS[said[1]], text[said.end() :]
    fit = (
        status
        for status, patterns in TRITONS.items()
        if any(re.search(pattern, text) for pattern in patterns)
    )
    return next(fit, UNKNOWN), text


def with_status(error: InferenceServerException) -> InferenceServerException:
    """As the error of a call that is no stream would be."""
    if error.status() is not None:
        return error
    status, text = status_and_text(str(error.message()))
    return InferenceServerException(text, f"StatusCode.{status}")
