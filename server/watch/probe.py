"""Is it ready? Asked once while it starts, then again and again in a thread of its own."""

import socket
import threading
import time
from collections.abc import Callable

from python_mp.machine.net import Loop
from python_mp.machine.thread import Thread
from server.control import Control, Version
from server.errors import ControlError

HURRY, CALM, PATIENCE = 0.15, 0.4, 1.0  # seconds
JOIN_SECONDS = 5.0


def is_ready(control: Control, *, http: bool = True) -> bool:
    """True once the server answers and no model is loading any more.

    Args:
        control: for a server that listens, or will.
        http: False where HTTP is switched off. Then, as where health is restricted, that it listens
            at all must do: Triton opens its ports after the models are loaded.
    """
    try:
        if not http:
            address = control.endpoints.contact.strip("[]"), control.endpoints.grpc
            socket.create_connection(address, 5.0).close()
            return True
        control.is_healthy()
        return all(version.state != "LOADING" for version in control.index())
    except ControlError as error:
        return error.status in (401, 403)
    except OSError:
        return False


class Probe:
    """Asks for the index of models all the time, so that nobody else ever waits for it.

    Attributes:
        versions: of all models, as last heard; None while the server does not answer.
        answers: how many there were.
    """

    def __init__(self, control: Control, loop: Loop, wake: Callable[[], None]) -> None:
        self.versions: list[Version] | None = None
        self.answers = 0
        self._line = control.index_line(PATIENCE)
        self._loop = loop
        self._wake = wake
        self._heard = time.monotonic()
        self._loop.run(self._ask)
        self._closed = threading.Event()
        self._hurried = threading.Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def hurry(self, hurried: bool) -> None:
        """Ask more often for now, or no more."""
        if hurried != self._hurried.is_set():
            self._hurried.set() if hurried else self._hurried.clear()

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()
        self._hurried.set()
        self._thread.join(JOIN_SECONDS)
        self._line.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            if not self._loop.run(self._ask) or self._hurried.wait(CALM):
                self._closed.wait(HURRY)

    def _ask(self) -> None:
        before = self.versions
        try:
            self.versions = self._line.ask()
            self.answers += 1
            self._heard = time.monotonic()
        except ControlError:
            pass  # it is away, or busy
        finally:
            if time.monotonic() - self._heard > PATIENCE:
                self.versions = None
            if self.versions != before:
                self._wake()
