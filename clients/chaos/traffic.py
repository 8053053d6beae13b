"""The clients: in closed loop over HTTP and gRPC, and probes that notice when a model answers."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from clients.chaos.bursts import Burst, Call
from clients.chaos.exchange import Connection, of_answer, of_error
from clients.chaos.journal import Journal, Outcome
from clients.chaos.questions import Exam, Question, draw
from clients.connection import Protocol

Connect = Callable[[Protocol], Connection]
PAUSE_AFTER_TROUBLE = 0.05  # seconds; a client that is refused does not ask ten thousand times
PROBE_PAUSE, PROBE_PATIENCE = 0.02, 0.25
STREAM_PATIENCE = 5.0  # seconds; an answer in parts takes its time, and more of them would be load


class Client(threading.Thread):
    """Asks one question after the other, until told to stop.

    Args:
        draw: the next question.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        draw: Callable[[], tuple[Exam, Question]],
        journal: Journal,
        via: str,
    ) -> None:
        super().__init__(name=via, daemon=True)
        self._connect, self._draw = connect, draw
        self._journal, self._via = journal, via
        self._stopping = threading.Event()

    def stop(self) -> None:
        """It ends with the answer to the request that it has sent."""
        self._stopping.set()

    def run(self) -> None:
        connection = self._connect()  # the HTTP one must not be shared between threads
        while not self._stopping.is_set():
            if self._ask(connection, *self._draw()) is not Outcome.RIGHT:
                self._stopping.wait(PAUSE_AFTER_TROUBLE)
        connection.close()

    def _ask(self, connection: Connection, exam: Exam, question: Question) -> Outcome:
        number = self._journal.sent(question.model, self._via)
        try:
            outcome, detail = of_answer(exam, question, connection.ask(question, number))
        except Exception as error:  # whatever it is, the client goes on
            outcome, detail = of_error(error)
        self._journal.ended(number, outcome, detail)
        return outcome


class Load:
    """`clients` of them, half over HTTP and half over gRPC, as long as the context is open."""

    def __init__(
        self, exams: Sequence[Exam], connect: Connect, journal: Journal, clients: int, seed: int
    ) -> None:
        self._journal = journal
        self._clients = []
        for number in range(clients):
            via: Protocol = "grpc" if number % 2 else "http"
            order = random.Random(f"{seed} {number}")
            self._clients.append(
                Client(
                    lambda via=via: connect(via),  # type: ignore[misc]
                    lambda order=order: draw(exams, order),  # type: ignore[misc]
                    journal,
                    via,
                )
            )

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        join(self._clients, self._journal.deadline)


class Probe(threading.Thread):
    """One small request after the other to one model: when does it answer again?

    It does not wait for long: what a dead process had in hand may never be answered.
    """

    def __init__(self, exam: Exam, connect: Connect, journal: Journal, seed: int) -> None:
        super().__init__(name="probe", daemon=True)
        self._exam, self._connect, self._journal = exam, connect, journal
        self._order = random.Random(f"{seed} {exam.model}")
        self._stopping = threading.Event()
        self._heard = threading.Condition()
        self._right: list[tuple[float, float]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        with Burst(self._connect("grpc"), self._journal, "probe") as burst:
            while not self._stopping.wait(PROBE_PAUSE):
                call = burst.send(self._exam, self._exam.draw(self._order, 1), self._note)
                call.done.wait(STREAM_PATIENCE if self._exam.streams else PROBE_PATIENCE)

    def first_right(self, after: float, timeout: float) -> float | None:
        """When the first right answer to a request came that was sent `after` that moment; None if
        none comes within `timeout` seconds. What is older is forgotten."""

        def found() -> float | None:
            self._right = [each for each in self._right if each[0] > after]
            return min(ended for _, ended in self._right) if self._right else None

        with self._heard:
            return self._heard.wait_for(found, timeout)

    def _note(self, call: Call) -> None:
        if call.outcome is Outcome.RIGHT:
            with self._heard:
                self._right.append((call.sent, time.monotonic()))
                self._heard.notify_all()


def join(clients: Sequence[Client], deadline: float) -> None:
    """Stop them, and wait as long as an answer may take."""
    until = time.monotonic() + deadline
    for client in clients:
        client.stop()
    for client in clients:
        client.join(max(0.0, until - time.monotonic()))
