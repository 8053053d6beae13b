"""Requests of a decoupled model: each is answered in parts, through its response sender."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..front.schedule.reading import StreamReader
from ..front.schedule.stream import Stream
from ..machine.net import Net
from ..model.config import ModelConfig
from ..model.errors import InvalidInput, PythonMpError, RequestFailed, for_clients
from ..model.request import Array
from ..wire.departures import SIZE, Departures, Whose
from .answers import FINAL, failure_in_parts, input_tensors, response

log = logging.getLogger(__name__)

STREAM, FAILURE = "STREAM", "FAILURE"
"""Outputs for a step behind the decoder, which asks for them and not for all: whose part it is, see
wire/departures.py, and an error's type and text."""
LEAVE_KEY = "leave_key"
"""A request parameter: the key by which its client may leave, steps/handed_on.py."""
_KEY_CHARACTERS = range(16, 129)
_NO_IDS = np.zeros((1, 0), np.int32)
_FAILED = {
    "OUTPUT_IDS": _NO_IDS,
    "CONTEXT_IDS": _NO_IDS,
    "FINISH_REASON": np.array([[b"error"]], np.object_),
    "TRIM": np.zeros((1, 1), np.int32),
    "USAGE": np.zeros((1, 3), np.int32),
}


class Streams:
    """
    Args:
        submit: takes what was read.
        runtime: a private folder.
    """

    def __init__(
        self,
        config: ModelConfig,
        submit: Callable[[Sequence[Stream]], None],
        runtime: Path,
        net: Net,
    ) -> None:
        self._config = config
        self._reader = StreamReader(config)
        self._submit = submit
        self._outputs = frozenset(spec.name for spec in config.outputs)
        self._departures = Departures(runtime, net) if STREAM in self._outputs else None

    def take(self, requests: Sequence[Any]) -> None:
        """Queues the requests of one call of `execute`."""
        read = (self._read(request, self._answer(request)) for request in requests)
        self._submit([stream for stream in read if stream])

    def stop(self) -> None:
        if self._departures:
            self._departures.stop()

    def _answer(self, request: Any) -> TritonStream:
        """To a request that asks for all outputs, as a client's does that names none, Triton's own
        errors are told."""
        wanted = frozenset(request.requested_output_names())
        is_chained = {STREAM, FAILURE} <= wanted < self._outputs
        return (ChainedStream if is_chained else TritonStream)(request, wanted, self._departures)

    def _read(self, request: Any, answer: TritonStream) -> Stream | None:
        try:
            parameters = json.loads(request.parameters() or "{}")
            answer.expect(_leave_key(parameters))
            tensors = input_tensors(request, self._config)
            stream = self._reader.read(tensors, parameters, answer)
        except PythonMpError as error:
            answer.fail(error)
            return None
        except Exception:  # Raised from here it would fail the others of this call as well.
            log.exception("a request could not be read")
            answer.fail(RequestFailed("the request could not be read"))
            return None
        if timeout := request.timeout():  # The client's own, in microseconds.
            stream.ends_by = stream.arrived + timeout / 1e6
            stream.deadline = min(stream.deadline, stream.ends_by)
        return stream


def _leave_key(parameters: Mapping[str, Any]) -> str | None:
    key = parameters.get(LEAVE_KEY)
    if key is None or (isinstance(key, str) and len(key) in _KEY_CHARACTERS):
        return key
    bounds = f"{_KEY_CHARACTERS[0]} to {_KEY_CHARACTERS[-1]}"
    raise InvalidInput(f"parameter '{LEAVE_KEY}' must be a text of {bounds} characters")


class TritonStream:
    """The way back for one request. Nothing may follow its last response, nor may it be asked for
    anything then: Triton's side of the sender is gone."""

    keeps = False

    def __init__(self, request: Any, wanted: frozenset[str], departures: Departures | None) -> None:
        self._sender = request.get_response_sender()
        self._wanted = wanted
        self._departures = departures
        self._whose: Whose = (0,) * SIZE
        self._lock = Lock()
        self._ended = self._left = False

    def expect(self, key: str | None) -> None:
        """That the client leaves: by its key, or by what its parts say."""
        if self._departures:
            self._whose = self._departures.expect(self._leave, key)

    def _leave(self) -> None:
        self._left = True

    def part(self, outputs: Mapping[str, Array]) -> None:
        self._send(self._response(outputs), 0)

    def send(self, outputs: Mapping[str, Array]) -> None:
        """And then the end: a part that finds no shared memory can be followed by an error, but
        not one of which Triton has been told that it is the last."""
        self._send(self._response(outputs), 0)
        self._send(None, FINAL)

    def fail(self, error: PythonMpError) -> None:
        self._send(failure_in_parts(error), FINAL)

    def _response(self, outputs: Mapping[str, Array]) -> Any:
        """Of those that were asked for: each costs time with each token."""
        return response({name: a for name, a in outputs.items() if name in self._wanted})

    def _send(self, what: Any, flags: int) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = flags == FINAL
            if self._ended and self._departures:
                self._departures.forget(self._whose)
            self._sender.send(*([] if what is None else [what]), flags=flags)

    def is_cancelled(self) -> bool:
        with self._lock:
            return not self._ended and (self._left or bool(self._sender.is_cancelled()))


class ChainedStream(TritonStream):
    """The same within an ensemble, for a step that gets each part.

    Triton 24.10 never lets go of an ensemble's request that fails while one of its steps is under
    way, and such a step mostly is: the one that has the part before. So an error goes that way,
    too, as a part, and the step behind tells it. Of a cancellation that step has to say, since
    Triton does not tell this one.
    """

    def fail(self, error: PythonMpError) -> None:
        said = f"{type(error).__name__}: {for_clients(error)}".encode()
        told = {FAILURE: np.array([[said]], np.object_)}
        self._send(self._response(_FAILED | told), FINAL)

    def _response(self, outputs: Mapping[str, Array]) -> Any:
        return super()._response({**outputs, STREAM: np.array([self._whose], np.int32)})
