"""Requests of a decoupled model: each is answered in parts, through its response sender."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

from ..front.schedule.reading import StreamReader
from ..front.schedule.stream import Stream
from ..model.config import ModelConfig
from ..model.errors import PythonMpError, RequestFailed
from ..model.request import Array
from .answers import FINAL, failure, input_tensors, response

log = logging.getLogger(__name__)


class Streams:
    """
    Args:
        submit: takes what was read.
    """

    def __init__(self, config: ModelConfig, submit: Callable[[Sequence[Stream]], None]) -> None:
        self._config = config
        self._reader = StreamReader(config)
        self._submit = submit

    def take(self, requests: Sequence[Any]) -> None:
        """Queues the requests of one call of `execute`."""
        read = (self._read(request, TritonStream(request)) for request in requests)
        self._submit([stream for stream in read if stream])

    def _read(self, request: Any, answer: TritonStream) -> Stream | None:
        try:
            parameters = json.loads(request.parameters() or "{}")
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


class TritonStream:
    """The way back for one request. Nothing may follow its last response, nor may it be asked for
    anything then: Triton's side of the sender is gone."""

    keeps = False

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._wanted = frozenset(request.requested_output_names())
        self._lock = Lock()
        self._ended = False

    def part(self, outputs: Mapping[str, Array]) -> None:
        self._send(self._response(outputs), 0)

    def send(self, outputs: Mapping[str, Array]) -> None:
        self._send(self._response(outputs), FINAL)

    def fail(self, error: PythonMpError) -> None:
        self._send(failure(error), FINAL)

    def _response(self, outputs: Mapping[str, Array]) -> Any:
        """Of those that were asked for: each costs time with each token."""
        return response({name: a for name, a in outputs.items() if name in self._wanted})

    def _send(self, what: Any, flags: int) -> None:
        with self._lock:
            if not self._ended:
                self._ended = flags == FINAL
                self._sender.send(what, flags=flags)

    def is_cancelled(self) -> bool:
        with self._lock:
            return not self._ended and bool(self._sender.is_cancelled())
