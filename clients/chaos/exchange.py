"""One request to the server, and what its answer or its error means."""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from geventhttpclient.response import HTTPConnectionClosed
from tritonclient.utils import InferenceServerException

from clients import proxy
from clients.chaos import streams
from clients.chaos.journal import Outcome
from clients.chaos.next_token import Streams
from clients.chaos.questions import Array, Exam, Question
from clients.connection import MODULES, Protocol

REFUSALS = {"503", "StatusCode.UNAVAILABLE", "404", "StatusCode.NOT_FOUND"}
KINDS = {"O": "BYTES", "f": "FP32", "i": "INT32"}
GONE = "is not healthy"  # Triton's INTERNAL for what a stub had in hand that died


class Connection:
    """A client of its own for each thread: the HTTP one must not be shared.

    Args:
        running: takes note of answers in parts.
    """

    def __init__(self, protocol: Protocol, url: str, deadline: float, running: Streams) -> None:
        self._module: Any = MODULES[protocol]
        self.protocol = protocol
        self._url, self._patience, self._running = url, deadline, running
        timeouts = {"connection_timeout": deadline, "network_timeout": deadline}
        options = timeouts if protocol == "http" else proxy.direct(url)
        self._client = self._module.InferenceServerClient(url, **options)
        self._deadline = {"client_timeout": deadline} if protocol == "grpc" else {}

    def ask(self, question: Question, number: int = 0) -> dict[str, Array]:
        """Outputs by name. Raises what tritonclient does, and AnswerError."""
        if question.streams:
            return self._stream(question)
        inputs = self._inputs(question)
        answer = self._client.infer(
            question.model, inputs, request_id=str(number), **self._deadline
        )
        return outputs(answer, number)

    def ask_later(self, question: Question, number: int, answered: Callable[..., None]) -> Any:
        """`answered(result, error)` comes from another thread; what is returned can `cancel`."""
        if question.streams:
            return streams.Later(question, self._connect, self._stream_over, answered)
        inputs = self._inputs(question)
        return self._client.async_infer(
            question.model, inputs, answered, request_id=str(number), **self._deadline
        )

    def close(self) -> None:
        self._client.close()

    def _stream(self, question: Question) -> dict[str, Array]:
        if self.protocol == "http":
            with self._running.one() as heard:
                return streams.over_http(self._url, question, self._patience, heard)
        with closing(self._connect()) as client:
            return self._stream_over(client, question, streams.Results())

    def _stream_over(
        self, client: Any, question: Question, found: streams.Results
    ) -> dict[str, Array]:
        inputs = self._inputs(question)
        with self._running.one() as heard:
            return streams.over_grpc(client, inputs, question, self._patience, found, heard)

    def _connect(self) -> Any:
        """A client has one stream at a time."""
        return self._module.InferenceServerClient(self._url, **proxy.direct(self._url))

    def _inputs(self, question: Question) -> list[Any]:
        tensors = []
        for name, array in question.inputs.items():
            kind = KINDS[array.dtype.kind]
            tensors.append(self._module.InferInput(name, array.shape, kind))
            tensors[-1].set_data_from_numpy(array)
        return tensors


class AnswerError(Exception):
    """The answer to another request."""


def outputs(answer: Any, number: int) -> dict[str, Array]:
    """An answer's tensors by name, if it is the answer to that request. Raises AnswerError."""
    if isinstance(answer, dict):  # Of parts; a connection has one at a time.
        return answer
    said = answer.get_response()
    if isinstance(said, dict):
        identity, tensors = said.get("id", ""), [each["name"] for each in said["outputs"]]
    else:
        identity, tensors = said.id, [each.name for each in said.outputs]
    if identity != str(number):
        raise AnswerError(f"answer to request {identity or 'without id'}")
    return {name: answer.as_numpy(name) for name in tensors}


def of_answer(exam: Exam, question: Question, answer: Mapping[str, Array]) -> tuple[Outcome, str]:
    mistake = exam.mistake(question, answer)
    return (Outcome.WRONG, mistake) if mistake else (Outcome.RIGHT, "")


def of_error(error: Exception) -> tuple[Outcome, str]:
    """What an exception of tritonclient means."""
    if isinstance(error, AnswerError):
        return Outcome.WRONG, str(error)
    if isinstance(error, TimeoutError):
        return Outcome.HUNG, "no answer within the deadline"
    if isinstance(error, InferenceServerException):
        status, text = str(error.status()), f"{error.status()}: {error.message()}"
        if "DEADLINE_EXCEEDED" in status:
            return Outcome.HUNG, "no answer within the deadline"
        refused = status in REFUSALS or GONE in text
        return (Outcome.REFUSED if refused else Outcome.FAILED), text
    if isinstance(error, ConnectionError | HTTPConnectionClosed):
        return Outcome.REFUSED, f"not connected: {error}"
    return Outcome.FAILED, repr(error)
