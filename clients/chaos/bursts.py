"""Requests that nobody waits for one by one: more than the server can take, or half of them
cancelled."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from tritonclient.utils import InferenceServerException

from clients.chaos.exchange import Connection, of_answer, of_error, outputs
from clients.chaos.journal import Journal, Outcome
from clients.chaos.questions import Exam, Question, draw

CANCEL_WITHIN = 0.05  # seconds: in the queue, in a batch, or too late


class Burst:
    """Requests over one gRPC connection. The context closes when each has its answer."""

    def __init__(self, connection: Connection, journal: Journal, via: str) -> None:
        self._connection, self._journal, self._via = connection, journal, via
        self._waiting = threading.Condition()
        self._unanswered = 0
        self.sent = 0

    def send(
        self, exam: Exam, question: Question, then: Callable[["Call"], None] = lambda call: None
    ) -> "Call":
        """`then` is called with the call when it has its outcome."""
        call = Call(time.monotonic())
        number = self._journal.sent(question.model, self._via)
        with self._waiting:
            self._unanswered += 1
            self.sent += 1

        def answered(result: Any, error: InferenceServerException | None) -> None:
            call.outcome, detail = _judge(exam, question, number, result, error, call)
            self._journal.ended(number, call.outcome, detail)
            call.done.set()
            then(call)
            with self._waiting:
                self._unanswered -= 1
                self._waiting.notify_all()

        call.context = self._connection.ask_later(question, number, answered)
        return call

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._waiting:
            self._waiting.wait_for(lambda: not self._unanswered, self._journal.deadline + 5)
        self._connection.close()


class Call:
    """A request on its way, which its client may give up."""

    def __init__(self, sent: float) -> None:
        self.sent = sent
        self.done = threading.Event()
        self.outcome: Outcome | None = None
        self.context: Any = None
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self.context.cancel()


def flood(
    burst: Burst, exams: Sequence[Exam], rate: float, seconds: float, order: random.Random
) -> None:
    """`rate` requests a second, whether they are answered or not."""
    for _ in ticks(rate, seconds):
        burst.send(*draw(exams, order))


def cancel(
    burst: Burst, exams: Sequence[Exam], rate: float, seconds: float, order: random.Random
) -> None:
    """The same, and half of them are cancelled a moment later."""
    doomed: list[tuple[float, Call]] = []
    for now in ticks(rate, seconds):
        call = burst.send(*draw(exams, order))
        if order.random() < 0.5:
            doomed.append((now + order.uniform(0, CANCEL_WITHIN), call))
        for due, other in doomed:
            if due <= now:
                other.cancel()
        doomed = [each for each in doomed if each[0] > now]
    for _, call in doomed:
        call.cancel()


def ticks(rate: float, seconds: float) -> Iterator[float]:
    """The moments at which to act; who is late catches up."""
    began = time.monotonic()
    for count in range(int(rate * seconds)):
        time.sleep(max(0.0, began + count / rate - time.monotonic()))
        yield time.monotonic()


def _judge(
    exam: Exam, question: Question, number: int, result: Any, error: Exception | None, call: Call
) -> tuple[Outcome, str]:
    if error is None:
        try:
            return of_answer(exam, question, outputs(result, number))
        except Exception as wrong:
            return of_error(wrong)
    status = error.status() if isinstance(error, InferenceServerException) else ""
    if call.cancelled and status == "StatusCode.CANCELLED":
        return Outcome.CANCELLED, ""
    return of_error(error)
