"""Replicas help each other: while one has no ranks, those that serve compute what waits there.

    away.py of a replica without ranks               this module, of a replica that serves
    FORWARD: inputs, what is known of the request --> Replica.submit
                  <-- DONE: outputs, or REFUSED: why     PeerAnswer
    RECALLED: it has its answer from elsewhere   --> the expiry
    PULSE  -->  <--  PULSE                           each knows that the other one reads
    POISON     -->  <--  POISON                      before all else; see news.py

Where a connection is lost nothing more comes, and what was not answered goes back to its home.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...machine.net import Net
from ...machine.thread import Thread
from ...model.errors import PythonMpError, TooLarge
from ...model.request import Array, Request
from ...wire.message import Kind, Message
from ..schedule import travelling
from ..schedule.stream import Stream
from . import line, news
from .line import Line
from .news import Informed

log = logging.getLogger(__name__)

_MOST_CHARACTERS = 1000
"""Of an error's text, so that many of them fit into a socket's buffer."""


class Guests:
    """Requests of peers that have no ranks: where this replica listens for them.

    Args:
        read: makes a request of what a peer has described; raises a PythonMpError.
        submit: takes guests.
        informed: knows what is on the poison list.
    """

    def __init__(
        self,
        replica: int,
        runtime: Path,
        read: Callable[[Mapping[str, Array], Mapping[str, Any], PeerAnswer], Request],
        submit: Callable[[Sequence[Request]], None],
        informed: Informed,
        net: Net,
    ) -> None:
        self._read = read
        self._submit = submit
        self._informed = informed
        self._net = net
        self._folder = runtime / line.FOLDER
        self._name = line.name_of(pid=os.getpid(), replica=replica)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._lines: dict[Line, Thread] = {}
        """With the thread that listens there."""
        self._thread = Thread(target=self._run, name="peers", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Of what it had open nothing is left."""
        self._stopping.set()
        if listener := self._listener:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # Ends the accept.
        self._thread.join()
        with self._lock:
            lines = self._lines.copy()
        for each in lines:
            each.shutdown()
        for thread in lines.values():
            thread.join(line.SILENCE_SECONDS)  # It may be queueing a guest.
        with suppress(OSError):
            (self._folder / self._name).unlink(missing_ok=True)

    def _run(self) -> None:
        self._net.loop("peers", self._listen, self._stopping)

    def _listen(self) -> None:
        with line.listen(self._folder, self._name) as self._listener:
            while not self._stopping.is_set():
                try:
                    connection = line.accept(self._listener)
                except PermissionError:
                    continue
                except OSError:
                    if self._stopping.is_set():
                        return
                    raise
                self._answer(connection)

    def _answer(self, connection: Line) -> None:
        thread = Thread(target=self._serve, args=[connection], daemon=True)
        with self._lock:
            self._lines[connection] = thread
        try:
            thread.start()
        except RuntimeError:  # There are too many.
            self._drop(connection)

    def _drop(self, connection: Line) -> None:
        connection.close()
        with self._lock:
            self._lines.pop(connection, None)

    def _serve(self, connection: Line) -> None:
        try:
            self._net.hold("peers", lambda: self._hear_all(connection))
        finally:
            self._drop(connection)

    def _hear_all(self, connection: Line) -> None:
        with suppress(OSError):  # It may have hung up, and left something to be heard.
            news.tell(connection, self._informed)
        recalled: set[int] = set()
        with suppress(OSError):  # It has hung up, or says nothing any more.
            while received := connection.receive():
                self._hear(connection, recalled, *received)

    def _hear(
        self, connection: Line, recalled: set[int], message: Message, inputs: dict[str, Array]
    ) -> None:
        if message.kind is Kind.PULSE:
            connection.send(Kind.PULSE)
        elif message.kind is Kind.POISON:
            self._informed.hear(message.text)
        elif message.kind is Kind.RECALLED:
            recalled.add(message.batch)
        else:
            self._take_in(PeerAnswer(connection, message.batch, recalled), message, inputs)

    def _take_in(self, answer: PeerAnswer, message: Message, inputs: dict[str, Array]) -> None:
        try:
            passport = json.loads(message.text)
            guest = answer.guest = self._read(inputs, passport, answer)
            _stamp(guest, passport)
        except PythonMpError as error:
            answer.fail(error)
        except Exception:  # What others have here is not to go home for it.
            log.exception("a peer's request could not be read")
            answer.fail(TooLarge("this replica cannot read it"))
        else:
            self._submit([guest])


class PeerAnswer:
    """The way back to the replica that a guest came from. Where an answer cannot be sent, that one
    is hung up on, and computes all that was not answered yet."""

    keeps = False

    def __init__(self, connection: Line, number: int, recalled: Collection[int] = ()) -> None:
        self.guest: Request | None = None
        self._connection = connection
        self._number = number
        self._recalled = recalled

    def part(self, outputs: Mapping[str, Array]) -> None:
        """Of a stream."""
        self._pass_on(Kind.PART, {}, travelling.part(outputs))

    def send(self, outputs: Mapping[str, Array]) -> None:
        if isinstance(self.guest, Stream):
            self.part(outputs)
            outputs = {}
        self._say(Kind.DONE, outputs, "")

    def fail(self, error: PythonMpError) -> None:
        refusal = {
            "error": type(error).__name__,
            "text": str(error)[:_MOST_CHARACTERS],
            "suspicion": self.guest.suspicion if self.guest else 0.0,
        }
        self._say(Kind.REFUSED, {}, json.dumps(refusal))

    def is_cancelled(self) -> bool:
        """Whether its home has hung up, or needs it no more."""
        return self._connection.is_closed or self._number in self._recalled

    def _say(self, kind: Kind, outputs: Mapping[str, Array], text: str) -> None:
        self.guest = None  # Or only the garbage collector would free its memory file.
        self._pass_on(kind, outputs, text)

    def _pass_on(self, kind: Kind, outputs: Mapping[str, Array], text: str) -> None:
        try:
            self._connection.send(kind, self._number, outputs, text)
        except OSError:
            self._connection.shutdown()
        except Exception:
            self._connection.shutdown()
            raise


def _stamp(request: Request, passport: dict[str, Any]) -> None:
    request.guest = True
    request.suspicion, request.alone = passport["suspicion"], passport["alone"]
    request.deadline = time.perf_counter() + passport["seconds"]
