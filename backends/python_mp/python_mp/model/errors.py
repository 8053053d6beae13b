"""What can go wrong, and the Triton status each error becomes.

PythonMpError        INTERNAL
├── ConfigError      INVALID_ARG   the config.pbtxt cannot work; the load fails
├── LoadError        INTERNAL      a rank could not load its shard; the load fails
├── InvalidInput     INVALID_ARG   this request's tensors are wrong; its group is untouched
├── Unavailable      UNAVAILABLE   the queue is full, or no group is up; try again
│   ├── TooLarge     UNAVAILABLE   for this replica, whatever it has; another may have more room
│   └── TimedOut     UNAVAILABLE   it waited longer than it was allowed to; Triton's own status
├── Cancelled        CANCELLED     its client has gone, or said so
├── RequestFailed    INTERNAL      the engine raised for this request, also when it ran alone
│   └── EngineFailed  INTERNAL      inside a rank: what computes failed, and may be broken now
└── GroupAborted     INTERNAL      inside a rank: a peer is gone, the collective was given up
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_MOST_CHARACTERS, _MOST_OF_OURS = 400, 2000  # Of others' texts, and of our sentences.
_PATH = re.compile(
    r"(?P<quote>['\"])(?:~|\.{0,2})/(?:(?!(?P=quote)).)*(?P=quote)"
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
    sequences: tuple[int, ...] = ()

    def __init__(self, text: str, sequences: Iterable[int] = ()) -> None:
        super().__init__(text)
        self.sequences = tuple(map(int, sequences))


class Unavailable(PythonMpError):
    status = "UNAVAILABLE"


class TooLarge(Unavailable):
    pass


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
    return _PATH.sub(lambda path: path["plain"] or f"'{_last(path[0])}'", _text(error))


def in_parts(status: str, text: str) -> str:
    """An error's text where answers come in parts: Triton hands on no status there, so it stands in
    the text. clients/stream_errors.py reads it."""
    return f"{status}: {text}"


def describe(error: BaseException) -> str:
    """In a line of at most some hundred characters; our own errors are sentences already."""
    name = type(error).__name__
    if isinstance(error, PythonMpError):
        return _text(error) or name
    text = " ".join(_text(error).split())[:_MOST_CHARACTERS]
    return f"{name}: {text}" if text else name


def _text(error: BaseException) -> str:
    """What a user's module says may be of any length, no UTF-8, or an exception itself."""
    try:
        return str(error)[:_MOST_OF_OURS].encode(errors="backslashreplace").decode()
    except Exception:
        return ""


def _last(quoted_path: str) -> str:
    return re.split(r"[/'\"]", quoted_path)[-2]
