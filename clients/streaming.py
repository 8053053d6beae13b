"""Answers that come in parts, over gRPC."""

from __future__ import annotations

import queue
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from clients.at_once import Inputs
from clients.connection import connect, default_url, sentence
from clients.stream_errors import status_and_text

Parameters = Mapping[str, str | int | bool]
"""Triton's request parameters. A number with a point goes as text: not every server reads one."""


class StreamError(Exception):
    """The server refused the request, or was lost on the way; the message is one sentence."""


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        text: what the part adds to the answer.
        finish_reason: why it is the last, "stop" or "length"; empty for all others.
        prompt_tokens, tokens: of the prompt, and of the answer so far.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    tokens: int


def stream(
    model: str,
    inputs: Inputs,
    parameters: Parameters,
    url: str | None = None,
    ca: Path | None = None,
) -> Generator[Part]:
    """The parts of an answer, as they come. Whoever stops reading cancels the request; but not one
    whose answer is whole, since Triton 24.10 may keep it for ever.

    `url` and `ca` are those of `clients.connection.connect`. Raises StreamError.
    """
    address = url or default_url("grpc")
    found: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
    client, is_whole = connect("grpc", address, ca), False
    client.start_stream(partial(_put, found))
    try:
        with suppress(InferenceServerException):  # Of a server that is gone; why, comes by `found`.
            client.async_stream_infer(
                model,
                [_tensor(name, array) for name, array in inputs.items()],
                parameters=dict(parameters),
                enable_empty_final_response=True,
            )
        while True:
            result, error = found.get()
            if error is not None:
                raise StreamError(_sentence(error, address)) from error
            response = result.get_response()
            is_whole = response.parameters["triton_final_response"].bool_param
            if response.outputs:
                yield _part(result)
            if is_whole:
                return
    finally:
        client.stop_stream(cancel_requests=not is_whole)
        client.close()


def _sentence(error: Exception, address: str) -> str:
    if isinstance(error, InferenceServerException) and error.status() is None:
        return status_and_text(str(error.message()))[1]
    return sentence(error, address)


def _put(found: queue.SimpleQueue[Any], result: Any, error: Exception | None) -> None:
    found.put((result, error))


def _tensor(name: str, array: Any) -> Any:
    made = tritonclient.grpc.InferInput(name, list(array.shape), "BYTES")
    made.set_data_from_numpy(array)
    return made


def _part(result: Any) -> Part:
    text, reason = (result.as_numpy(name).item().decode() for name in ("ANSWER", "FINISH_REASON"))
    prompt, tokens, _ = result.as_numpy("USAGE").ravel().tolist()
    return Part(text, reason, prompt, tokens)
