"""One peer that helps, and the requests that it has."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from typing import Any, NamedTuple, Protocol

from ...machine.net import Net
from ...machine.thread import Thread
from ...model import errors
from ...model.request import Array, Request
from ...wire.message import Kind, Message
from ..schedule.stream import Stream
from . import line, news
from .line import Line
from .news import Informed

MOST_AWAY = 128
"""Requests at one helper; so few that their messages fit into the sockets' buffers."""
REST_SECONDS = 0.25
"""For which one that is full is left in peace."""


class Home(Informed, Protocol):
    """The replica, as those see it that find help."""

    @property
    def needs_help(self) -> bool: ...

    def lend(self) -> Request | None:
        """The next request that may be computed elsewhere."""

    def hear_part(self, request: Request, text: str) -> None:
        """A peer has a part of its answer."""

    def settle(self, request: Request) -> None:
        """A peer has its answer."""

    def take_back(self, requests: list[Request]) -> None:
        """No peer has."""

    def stand_alone(self) -> None:
        """There is no peer that serves."""


class Helper:
    """Gets no request before it has said something: who listens there may never read. A request is
    in its hands until that is answered or taken back, by whichever thread has taken it out."""

    def __init__(self, connection: Line, home: Home, changed: Callable[[], None], net: Net) -> None:
        self.serves = True
        self.is_gone = False
        self._connection = connection
        self._home = home
        self._changed = changed
        self._net = net
        self._lock = threading.Lock()
        self._requests: dict[int, Request] = {}
        self._numbers = count()
        self._window = MOST_AWAY
        self._made = self._heard = time.monotonic()
        self._next_pulse = 0.0
        self._has_spoken = False
        self._rests_until = 0.0
        self._thread = Thread(target=self._run, name="helper", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # There are too many.
            connection.close()
            raise

    @property
    def load(self) -> int:
        return len(self._requests)

    @property
    def is_promising(self) -> bool:
        fresh = time.monotonic() - self._made < line.PULSE_SECONDS
        return self.serves and not self.is_gone and (self._has_spoken or fresh)

    @property
    def has_room(self) -> bool:
        able = self.serves and self._has_spoken and not self.is_gone
        return able and self.load < self._window and time.monotonic() >= self._rests_until

    def send(self, request: Request) -> None:
        """The request comes back if it cannot be sent."""
        number = next(self._numbers)
        with self._lock:
            self._requests[number] = request
        try:
            inputs, said = request.described()
            self._connection.send(Kind.FORWARD, number, inputs, _passport(request, said))
        except Exception as error:
            self._rest()
            # Full buffers are the peer's fault. What else fails may be the request's, and is not
            # tried for ever.
            self._give_back([number], was_lost=not isinstance(error, BlockingIOError))
        else:
            if self.is_gone:  # Its thread may have gone before it saw this one.
                self._give_back([number])

    def recall(self) -> None:
        """Parts of a request that has its answer, since another part has failed."""
        for number, request in self._copy():
            if request.answered:
                self._give_back([number])
                with suppress(OSError):
                    self._connection.send(Kind.RECALLED, number)

    def stop(self) -> None:
        """Its thread ends soon; see `join`."""
        self._connection.shutdown()

    def join(self) -> None:
        self._thread.join(line.SILENCE_SECONDS)  # It may be answering.

    # -- its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        with closing(self._connection):
            self._net.hold("peers", self._converse)
        self.is_gone = True
        self._give_back(list(self._requests), was_lost=True)
        self._changed()

    def _converse(self) -> None:
        with suppress(OSError):
            news.tell(self._connection, self._home)
            self._pulse()
            while self._listen():
                pass

    def _listen(self) -> bool:
        """Whether it is still there."""
        try:
            received = self._connection.receive()
        except BlockingIOError:
            pass
        else:
            if received is None:
                return False
            self._hear(*received)
        if time.monotonic() >= self._next_pulse:
            self._pulse()
        return time.monotonic() - self._heard < line.SILENCE_SECONDS

    def _hear(self, message: Message, tensors: dict[str, Array]) -> None:
        if message.kind is Kind.POISON:
            self._home.hear(message.text)
        elif message.kind is not Kind.PULSE:
            self._book(message, tensors)
        self._heard, self._has_spoken = time.monotonic(), True
        self._changed()

    def _pulse(self) -> None:
        """Also to one that says much: it has to hear of us as well."""
        self._next_pulse = time.monotonic() + line.PULSE_SECONDS
        now = time.perf_counter()
        self._give_back([n for n, each in self._copy() if each.deadline < now])
        with suppress(BlockingIOError):
            self._connection.send(Kind.PULSE)

    def _book(self, message: Message, tensors: dict[str, Array]) -> None:
        if message.kind is Kind.PART:
            if part_of := self._requests.get(message.batch):
                self._home.hear_part(part_of, message.text)
            return
        refusal = _Refusal(**json.loads(message.text)) if message.kind is Kind.REFUSED else None
        with self._lock:
            request = self._requests.pop(message.batch, None)
        if request is None:  # It was taken back.
            return
        if isinstance(request, Stream) and not (refusal or request.is_over):
            refusal = _AT_ITS_END
        if refusal and type(refusal.as_error) is errors.TooLarge:
            request.strays += 1
            self._home.take_back([request])
            return
        if refusal and type(refusal.as_error) is errors.Unavailable:  # Its trouble alone.
            self._window = 1
            self._rest()
            request.suspicion = max(request.suspicion, refusal.suspicion)
            request.alone |= request.suspicion > 0
            self._home.take_back([request])
            return
        self._window = min(MOST_AWAY, self._window + 1)
        self._home.settle(request)
        if refusal:
            request.deliver(request.answer.fail, refusal.as_error)
        elif tensors:  # Else its parts were the answer.
            request.deliver(request.send, tensors)

    def _give_back(self, numbers: list[int], *, was_lost: bool = False) -> None:
        with self._lock:
            taken = [self._requests.pop(n) for n in numbers if n in self._requests]
        for request in taken:
            request.strays += was_lost
        if taken:
            self._home.take_back(taken)

    def _copy(self) -> list[tuple[int, Request]]:
        with self._lock:
            return list(self._requests.items())

    def _rest(self) -> None:
        self._rests_until = time.monotonic() + REST_SECONDS


def _passport(request: Request, said: dict[str, Any]) -> str:
    left = request.deadline - time.perf_counter()
    known = {"suspicion": request.suspicion, "alone": request.alone, "seconds": left}
    return json.dumps(said | known)


class _Refusal(NamedTuple):
    """What a peer says of a request that it did not compute."""

    error: str
    text: str
    suspicion: float

    @property
    def as_error(self) -> errors.PythonMpError:
        kind: type[errors.PythonMpError] = getattr(errors, self.error, errors.RequestFailed)
        return kind(self.text)


_AT_ITS_END = _Refusal(errors.TooLarge.__name__, "its cache holds no more of the stream", 0.0)
