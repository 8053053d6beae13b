"""Runs one server until it ends or is told to."""

import signal
import time
from collections.abc import Callable
from types import FrameType

from server.endpoints import Endpoints
from server.errors import ServerError
from server.launch import TritonServer

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_SIGNAL = 1.0  # seconds; one wish may arrive twice: by the process group and by make


class Watcher:
    """The first signal drains the server, the second one ends it.

    Args:
        server: not yet started.
        say: takes the lines meant for the user, in a signal handler too.
    """

    def __init__(self, server: TritonServer, say: Callable[[str], None]) -> None:
        self._server = server
        self._say = say
        self._asked: float | None = None
        self._killed = False

    def run(self, demo: Callable[[Endpoints], str] | None = None) -> None:
        """Serve until a signal has drained the server.

        Args:
            demo: called with the endpoints once the server is ready; what it returns is shown.

        Raises:
            ServerError: it did not become ready, ended by itself, or did not drain.
        """
        begun = time.monotonic()
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._on_signal)
        try:
            self._server.start()
            if self._asked:
                self._server.request_stop()
            self._server.wait_ready()
            self._announce(time.monotonic() - begun, demo)
        except ServerError:
            if self._asked is None:
                self._server.stop()
                raise
            self._server.wait()
            return  # nothing was in flight yet
        self._wait()

    def _wait(self) -> None:
        code = self._server.wait()
        if self._asked is None:
            raise self._server.log.why_it_ended(code)
        if self._killed:
            raise ServerError("the server was ended with requests in flight")
        if code:
            raise ServerError(
                f"it had not drained when the {self._server.settings.exit_timeout} s"
                " of --exit-timeout-secs were over"
            )
        self._say("drained")

    def _announce(self, seconds: float, demo: Callable[[Endpoints], str] | None) -> None:
        log, endpoints = self._server.log, self._server.endpoints
        for name, why in sorted(log.failures.items()):
            self._say(f"{name} did not load: {why}")
        if demo is not None:
            try:
                self._say(demo(endpoints))
            except Exception as error:
                if self._asked is None:
                    self._say(f"the demonstration failed: {error}")
        names = ", ".join(sorted(log.ready))
        self._say(
            f"ready after {seconds:.1f} s: {names}\n"
            f"  HTTP     http://{endpoints.http_url}\n"
            f"  gRPC     {endpoints.grpc_url}\n"
            f"  metrics  {endpoints.metrics_url}\n"
            "Ctrl-C drains and ends it"
        )

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked = now
            self._say("draining; once more ends it at once")
            self._server.request_stop()
        elif now - self._asked > SAME_SIGNAL:
            self._killed = True
            self._server.request_stop(at_once=True)
