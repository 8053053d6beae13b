"""A tritonserver for the watcher that only says what it would do."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from python_mp.machine.net import Net
from server.endpoints import Endpoints
from server.errors import ServerError
from server.process.log import Log
from server.settings import Settings

Event = Callable[["FakeServer"], Any]


class FakeServer:
    """Is ready at once; while it serves, one event happens at each look at it."""

    pid = 0

    def __init__(self, *events: Event, refuses: int = 0, code: int = 0) -> None:
        self.endpoints = Endpoints.free()
        # Without HTTP there is no control of models, and that is not what is tested here.
        self.settings = Settings(Path(), self.endpoints, options=["--allow-http=false"])
        self.log = Log(print)
        self.net = Net(say=print)
        self.starts = 0
        self.stops: list[bool] = []
        self.is_tolerant = False
        self.ended: int | None = None
        self._events = iter(events)
        self._refuses = refuses
        self._code = code
        self._serves = False

    def start(self) -> None:
        self.starts += 1
        self._serves, self.ended = False, None
        if 1 < self.starts <= 1 + self._refuses:
            raise ServerError("no port")

    def is_ready(self) -> bool:
        self._serves = True
        return True

    def tolerate(self) -> None:
        self.is_tolerant = True

    @property
    def returncode(self) -> int | None:
        if self.ended is None and self._serves and not self.stops:
            next(self._events, lambda _: None)(self)
        return self.ended

    def request_stop(self, *, at_once: bool = False) -> None:
        self.stops.append(at_once)

    def stop_if_drained(self) -> None:
        if (event := next(self._events, None)) is not None:
            event(self)
        else:
            self.ended = self._code

    def wait(self) -> int:
        return self.ended or 0

    stop = wait


def told(number: int) -> Event:
    return lambda _: signal.raise_signal(number)


def dies(code: int) -> Event:
    return lambda server: setattr(server, "ended", code)


def nothing(_: FakeServer) -> None: ...
