"""What waits at a replica without ranks is computed by its peers.

    Home.lend --> Away --> Helper.send --> peers.py of a replica that serves --> its queue and ranks
    Home.settle, Home.take_back <-- Helper <--

Only the threads of this module wait for a peer, and not for long. A request that is lent is in the
hands of one helper, until that is answered or gone; then it is answered, or taken back.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from .. import errors
from ..batch import Array, Request
from ..channel import Kind, Message
from . import line
from .line import Line
from .net import Net
from .status import Status

LOOK_SECONDS = 0.25
"""Between two looks for peers, and how long one that is full is left in peace."""
MOST_AWAY = 128
"""Requests at one helper; so few that their messages fit into the sockets' buffers."""


class Home(Protocol):
    """The replica, as this module sees it."""

    @property
    def needs_help(self) -> bool: ...

    def lend(self) -> Request | None:
        """The next request that may be computed elsewhere."""

    def settle(self, request: Request) -> None:
        """A peer has its answer."""

    def take_back(self, requests: list[Request]) -> None:
        """No peer has."""

    def stand_alone(self) -> None:
        """There is no peer that serves."""

    def condemned(self) -> str:
        """What no peer should compute either; empty if nothing."""


class Away:
    """Finds peers that serve, and shares what waits among them."""

    def __init__(self, home: Home, status: Status, runtime: Path, net: Net) -> None:
        self._home = home
        self._status = status
        self._folder = runtime / line.FOLDER
        self._net = net
        self._helpers: dict[str, Helper] = {}
        self._next_look = 0.0
        self._has_news = False
        self._pause: float | None = None
        self._awake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="away", daemon=True)

    @property
    def is_hopeful(self) -> bool:
        """Whether a peer helps, or may be about to."""
        return any(helper.is_promising for helper in self._helpers.values())

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something waits, or has changed."""
        self._awake.set()

    def spread(self) -> None:
        """Tells the peers what is condemned."""
        self._has_news = True
        self.wake()

    def stop(self) -> None:
        """What is away comes back first."""
        self._stopping.set()
        self.wake()
        if self._thread.ident:
            self._thread.join()
        for helper in self._helpers.values():
            helper.hang_up()
        for helper in self._helpers.values():
            helper.join()
        self._helpers = {}

    def _run(self) -> None:
        self._net.loop("peers", self._turn, self._stopping)

    def _turn(self) -> None:
        self._awake.wait(self._pause)
        self._awake.clear()
        self._pause = LOOK_SECONDS  # Also if what follows raises.
        if self._stopping.is_set():
            return
        if self._has_news:
            self._tell()
        if self._home.needs_help:
            self._recruit()
            self._share()
        elif not self._dismiss():
            self._pause = None

    def _recruit(self) -> None:
        """Keeps a connection to every peer that serves."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        serving = {peer_name(peer) for peer in self._status.serving_peers()}
        helpers = {name: each for name, each in self._helpers.items() if not each.is_gone}
        for name in serving - helpers.keys():
            with suppress(OSError):
                helpers[name] = Helper(
                    line.connect(self._folder, name), self._home, self.wake, self._net
                )
        for name, helper in helpers.items():
            helper.serves = name in serving
        self._helpers = helpers

    def _share(self) -> None:
        """The least busy one gets the next request."""
        if not self.is_hopeful:
            self._home.stand_alone()
        while free := [helper for helper in self._helpers.values() if helper.has_room]:
            request = self._home.lend()
            if request is None:
                return
            min(free, key=lambda helper: helper.load).send(request)

    def _dismiss(self) -> bool:
        """Whether helpers are left; those that still compute stay."""
        for helper in self._helpers.values():
            if not helper.load:
                helper.hang_up()
        self._helpers = {name: each for name, each in self._helpers.items() if each.load}
        return bool(self._helpers)

    def _tell(self) -> None:
        """All of them, not only those that serve: a client may ask there next."""
        self._has_news = False
        for peer in self._status.peers():
            with (
                suppress(OSError),
                closing(line.connect(self._folder, peer_name(peer))) as connection,
            ):
                connection.send(Kind.CONDEMNED, text=self._home.condemned())


class Helper:
    """A peer that serves, and the requests that it has. It gets none before it has said something:
    somebody may listen there who never reads."""

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
        self._has_spoken = False
        self._rests_until = 0.0
        self._thread = threading.Thread(target=self._run, name="helper", daemon=True)
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
            passport = _passport(request)
            self._connection.send(Kind.FORWARD, number, request.inputs, passport)
        except Exception as error:
            self._rest()
            # Full buffers are the peer's fault. What else fails may be the request's, and is not
            # tried for ever.
            self._give_back([number], was_lost=not isinstance(error, BlockingIOError))
        else:
            if self.is_gone:  # Its thread may have gone before it saw this one.
                self._give_back([number])

    def hang_up(self) -> None:
        self._connection.hang_up()

    def join(self) -> None:
        self._thread.join()

    # -- its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        with closing(self._connection):
            self._net.hold("peers", self._converse)
        self.is_gone = True
        self._give_back(list(self._requests), was_lost=True)
        self._changed()

    def _converse(self) -> None:
        with suppress(OSError):
            if text := self._home.condemned():
                self._connection.send(Kind.CONDEMNED, text=text)
            self._connection.send(Kind.PULSE)
            while self._listen():
                pass

    def _listen(self) -> bool:
        """Whether it is still there."""
        try:
            received = self._connection.receive()
        except BlockingIOError:
            return self._wait_on()
        if received is None:
            return False
        self._heard, self._has_spoken = time.monotonic(), True
        message, tensors = received
        if message.kind is not Kind.PULSE:
            self._book(message, tensors)
        self._changed()
        return True

    def _wait_on(self) -> bool:
        now = time.perf_counter()
        self._give_back([n for n, each in self._copy() if each.deadline < now])
        with suppress(BlockingIOError):
            self._connection.send(Kind.PULSE)
        return time.monotonic() - self._heard < line.SILENCE_SECONDS

    def _book(self, message: Message, tensors: dict[str, Array]) -> None:
        refusal = json.loads(message.text) if message.kind is Kind.REFUSED else {}
        with self._lock:
            request = self._requests.pop(message.batch, None)
        if request is None:  # It was taken back.
            return
        if refusal.get("error") == errors.Unavailable.__name__:  # Its trouble, not the request's.
            self._window = 1
            self._rest()
            request.suspicion = max(request.suspicion, refusal["suspicion"])
            request.alone |= request.suspicion > 0
            self._home.take_back([request])
            return
        self._window = min(MOST_AWAY, self._window + 1)
        self._home.settle(request)
        if refusal:
            request.deliver(request.answer.fail, _error(**refusal))
        else:
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
        self._rests_until = time.monotonic() + LOOK_SECONDS


def peer_name(said: dict[str, Any]) -> str:
    """Of its socket; `said` is what its status says."""
    return name_of(said["pid"], said["replica"])


def name_of(pid: int, replica: int) -> str:
    return f"{pid}.{replica}"


def _passport(request: Request) -> str:
    left = request.deadline - time.perf_counter()
    return json.dumps({"suspicion": request.suspicion, "alone": request.alone, "seconds": left})


def _error(error: str, text: str, **_: Any) -> errors.PythonMpError:
    kind = getattr(errors, error, errors.RequestFailed)
    return kind(text)
