"""What a decoder says beside its parts to the step behind it, and what that says back: the other
half of triton/stream_answers.py, ChainedStream."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from ..model import errors
from ..wire.departures import SIZE, Whose, leave, tell

LEAVE = "leave"
"""A request parameter: the key of a stream that its client leaves. A stream that is left ends as
others do, where one that is cancelled may end Triton 24.10."""
ASK_SECONDS = 0.02
"""To ask whether a client has gone is a round trip to the server, so it is not done with every part
of a fast model."""
_MOST = 4096
"""Streams that are remembered; those whose decoder has died would be for ever."""


class HandedOn:
    """
    Args:
        runtime: the server's private folder.
    """

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self._asked: dict[Whose, float] = {}

    def look(self, request: Any) -> None:
        """Tells the decoder if the client has gone, or says that it leaves. Raises what the decoder
        says instead of a part: a PythonMpError."""
        if key := _left(request):
            leave(self._runtime, key)
        stream = _values(request, "STREAM")
        if stream is None:  # It is no step of an ensemble.
            return
        if len(stream) != SIZE:
            raise errors.InvalidInput(f"STREAM has {len(stream)} numbers; a decoder's has {SIZE}")
        whose = tuple(stream)
        if failure := _values(request, "FAILURE"):
            self._asked.pop(whose, None)
            raise _error(failure[0].decode())
        if self._is_due(whose) and request.is_cancelled():
            tell(self._runtime, whose)

    def _is_due(self, whose: Whose) -> bool:
        now = time.monotonic()
        if now - self._asked.get(whose, 0.0) < ASK_SECONDS:
            return False
        if len(self._asked) >= _MOST:
            self._asked.clear()
        self._asked[whose] = now
        return True


def _left(request: Any) -> str | None:
    given = request.parameters()  # JSON; those of each part are the stream's own.
    key = json.loads(given).get(LEAVE) if given and f'"{LEAVE}"' in given else None
    return key if isinstance(key, str) else None


def _values(request: Any, name: str) -> list[Any] | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else list(tensor.as_numpy().ravel().tolist())


def _error(said: str) -> errors.PythonMpError:
    kind, _, text = said.partition(": ")
    found: type[errors.PythonMpError] = getattr(errors, kind, errors.RequestFailed)
    return found(text)
