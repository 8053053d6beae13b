"""Answers that come in parts: joined, they are compared like any other."""

import json
import queue
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from threading import Thread
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from clients.chaos.next_token import Heard
from clients.chaos.questions import Array, Question
from clients.stream_errors import with_status

SHOWN = "ANSWER", "OUTPUT_IDS"
"""What is compared: the first of these that the parts have."""
Results = queue.SimpleQueue[tuple[Any, Any]]


def over_grpc(
    client: Any,
    inputs: list[Any],
    question: Question,
    deadline: float,
    found: Results,
    heard: Heard,
) -> dict[str, Array]:
    """All of the answer, whose parts come over a client of its own and through `found`. Raises what
    tritonclient does, and TimeoutError."""
    is_whole = False
    client.start_stream(lambda result, error: found.put((result, error)))
    try:
        client.async_stream_infer(
            question.model,
            inputs,
            parameters=dict(question.parameters),
            enable_empty_final_response=True,
        )
        answer = joined(_told(_parts(found, deadline), heard))
        is_whole = True
        return answer
    finally:
        client.stop_stream(cancel_requests=not is_whole)


def _parts(found: Results, deadline: float) -> Iterator[Mapping[str, Array]]:
    while True:
        try:
            result, error = found.get(timeout=deadline)
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise with_status(error)
        response = result.get_response()
        if response.outputs:
            yield {each.name: result.as_numpy(each.name) for each in response.outputs}
        if response.parameters["triton_final_response"].bool_param:
            return


def over_http(url: str, question: Question, deadline: float, heard: Heard) -> dict[str, Array]:
    """The same by server-sent events. Raises OSError, and InferenceServerException with what an
    event says instead of a part."""
    given = {name: _plain(array) for name, array in question.inputs.items()}
    body = json.dumps(given | {"parameters": dict(question.parameters)}).encode()
    at = f"http://{url}/v2/models/{question.model}/generate_stream"
    with urllib.request.urlopen(urllib.request.Request(at, body), timeout=deadline) as answer:
        lines = (line[6:] for line in answer if line.startswith(b"data: "))
        return joined(_told((_checked(json.loads(line)) for line in lines), heard))


def _plain(array: Array) -> Any:
    return array.item().decode() if array.dtype.kind == "O" else array.ravel().tolist()


def _checked(event: dict[str, Any]) -> Mapping[str, Array]:
    if "error" in event:
        raise with_status(InferenceServerException(event["error"]))
    numbers = "OUTPUT_IDS", "USAGE"
    made = {name: np.array(event[name], np.int32).reshape(1, -1) for name in numbers}
    if "ANSWER" in event:
        made["ANSWER"] = np.array([[event["ANSWER"].encode()]], np.object_)
    return made


def _told(parts: Iterator[Mapping[str, Array]], heard: Heard) -> Iterator[Mapping[str, Array]]:
    for part in parts:
        heard(int(part["USAGE"].ravel()[:2].sum()))
        yield part


def joined(parts: Iterator[Mapping[str, Array]]) -> dict[str, Array]:
    """One output, [1, ...], of all parts."""
    found = list(parts)
    name = next(name for name in SHOWN if name in found[0])
    if found[0][name].dtype.kind == "O":
        return {name: np.array([[b"".join(part[name].item() for part in found)]], np.object_)}
    return {name: np.concatenate([part[name] for part in found], 1)}


class Later:
    """An answer that another thread waits for.

    Args:
        connect: makes a client of gRPC.
        ask: gives the answer over it.
        answered: is called with the answer, or an error.
    """

    def __init__(
        self,
        question: Question,
        connect: Callable[[], Any],
        ask: Callable[[Any, Question, Results], dict[str, Array]],
        answered: Callable[..., None],
    ) -> None:
        self._question, self._client = question, connect()
        self._ask, self._answered = ask, answered
        self._found = Results()
        Thread(target=self._run, daemon=True).start()

    def cancel(self) -> None:
        error = InferenceServerException("cancelled", "StatusCode.CANCELLED")
        self._found.put((None, error))

    def _run(self) -> None:
        try:
            answer = self._ask(self._client, self._question, self._found)
        except Exception as error:
            self._answered(None, error)
        else:
            self._answered(answer, None)
        finally:
            self._client.close()
