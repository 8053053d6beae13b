"""What can go wrong, and the Triton status each error becomes.

PythonMpError        INTERNAL
├── ConfigError      INVALID_ARG   the config.pbtxt cannot work; the load fails
├── LoadError        INTERNAL      a rank could not load its shard; the load fails
├── InvalidInput     INVALID_ARG   this request's tensors are wrong; its group is untouched
├── Unavailable      UNAVAILABLE   the queue is full, or no group is up; try again
│   └── TimedOut     UNAVAILABLE   it waited longer than it was allowed to; Triton's own status
├── Cancelled        CANCELLED     its client has gone, or said so
├── RequestFailed    INTERNAL      the engine raised for this request, also when it ran alone
│   └── EngineFailed  INTERNAL      inside a rank: what computes failed, and may be broken now
└── GroupAborted     INTERNAL      inside a rank: a peer is gone, the collective was given up
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_MOST_CHARACTERS = 400
_PATH = re.compile(
    r"(?P<quote>['\"])(?:~|\.{0,2})/(?:(?!(?P=quote)).)*?(?P<quoted>[^/'\"]*)(?P=quote)"
    r"|(?<![\w.:/])(?:~|\.{0,2})/(?:[^\s/'\":,;()\[\]]+/)*(?P<plain>[^\s/'\":,;()\[\]]+)"
)


class PythonMpError(Exception):
    """Base of all errors here; `status` names a code of `pb_utils.TritonError`."""

    status = "INTERNAL"


class ConfigError(PythonMpError):
    status = "INVALID_ARG"


class LoadError(PythonMpError):
    pass


class InvalidInput(PythonMpError):
    """`sequences`: which of the batch's the text is true of; none where nobody knows."""

    status = "INVALID_ARG"

    def __init__(self, text: str, sequences: Iterable[int] = ()) -> None:
        super().__init__(text)
        self.sequences = tuple(map(int, sequences))


class Unavailable(PythonMpError):
    status = "UNAVAILABLE"


class TimedOut(Unavailable):
    pass


class Cancelled(PythonMpError):
    status = "CANCELLED"


class RequestFailed(PythonMpError):
    pass


class EngineFailed(RequestFailed):
    pass


class GroupAborted(PythonMpError):
    pass


def for_clients(error: Exception) -> str:
    """Its text, with file names in the place of paths: where things lie is no client's business."""
    return _PATH.sub(
        lambda path: path["plain"] or "'{quoted}'".format(**path.groupdict()), str(error)
    )


def describe(error: BaseException) -> str:
    """In a line of at most some hundred characters; our own errors are sentences already."""
    if isinstance(error, PythonMpError):
        return str(error)
    try:
        text = " ".join(str(error).split())[:_MOST_CHARACTERS]
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
