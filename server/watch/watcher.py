"""Runs a server, again after each death, until it is told to stop."""

import time
from collections.abc import Callable
from contextlib import suppress

from python_mp.machine.backoff import Backoff
from server.errors import ControlError, ServerError
from server.pages import report
from server.pages.health import Health
from server.pages.report import Facts
from server.process.launch import TritonServer
from server.process.progress import Progress
from server.watch import announcement
from server.watch.events import Events
from server.watch.reconciler import Reconciler
from server.watch.state import State
from server.watch.stop_signals import StopSignals

TICK = 0.1
REPORT = 1.0  # seconds between two reports while nothing is new
CALM = 0.4  # seconds between two looks while nothing is to be done; events come at once
START_PAUSE = 2.0  # seconds between two tries at most, while it cannot even be started


class Watcher:
    """The first signal drains the server, the second one ends it.

    Args:
        server: not yet started.
        say: takes the lines meant for the user, in a signal handler too.
        drain_window: seconds between the first signal and the end of service.
        watch_repository: load what changes in the model repository.
    """

    def __init__(
        self,
        server: TritonServer,
        say: Callable[[str], None],
        *,
        drain_window: float = 0.0,
        watch_repository: bool = True,
    ) -> None:
        self.server = server
        self.net = server.net
        self.events = Events()
        self.reconciler: Reconciler | None = None
        self.state = State.WAITING
        self.since = self.served = time.monotonic()
        self.version = ""
        self.restarts = 0
        self.trouble = ""
        self._say = say
        self._window = drain_window
        self._watch = watch_repository
        self._backoff = Backoff()
        self._due = self._next_report = 0.0
        self._serves = False  # this tritonserver does, or did
        self._begun = False  # some tritonserver did
        self._signals = StopSignals(self.events.wake, say)
        self._error: ServerError | None = None
        self._told = frozenset[str]()
        self._serving: Callable[[frozenset[str]], object] | None = None
        self._health: Health
        self._progress: Progress

    def run(self, serving: Callable[[frozenset[str]], object] | None = None) -> None:
        """Serve until a signal has drained the server.

        Args:
            serving: is told which models are ready, once the server is and after each change.

        Raises:
            ServerError: it never became ready, or did not drain.
        """
        self._signals.listen()
        self._serving = serving
        self._begin()  # its complaint about a port comes first
        try:
            listener = self.server.endpoints.listen("health")
            with Health(listener, self.server.settings.token, self.net) as self._health:
                while self.state is not State.ENDED:
                    if not self._is_calm or time.monotonic() >= self._next_report:
                        self._publish()
                    self.net["the events"].run(self._wait)
                    time.sleep(self.net["the events"].pause)
                    self.tick()
        finally:
            self._close_reconciler()
            self.server.stop()
            self.events.close()
        if self._error is not None:
            raise self._error

    def tick(self) -> None:
        """Look at the server once, and do what its state asks for. Raises nothing."""
        if self._signals.is_asked:
            self.net["the signal's work"].run(self._obey)
        self.net["the server's watch"].run(self._advance)

    def _advance(self) -> None:
        match self.state:
            case State.WAITING if time.monotonic() >= self._due:
                self._try_again()
            case State.STARTING:
                self._start_up()
            case State.SERVING | State.DRAINING:
                self._serve()
            case State.STOPPING:
                self._stop()

    @property
    def _is_calm(self) -> bool:
        if self._signals.is_asked or self.state is not State.SERVING:
            return False
        return self.reconciler is None or (self.reconciler.is_calm and not self.reconciler.has_news)

    def _wait(self) -> None:
        self.events.wait(CALM if self._is_calm else TICK)

    def _close(self, error: ServerError | None = None) -> None:
        self._turn(State.ENDED)
        self._error = error

    def _begin(self) -> None:
        self._close_reconciler()
        self._serves = False
        try:
            if not self.server.settings.own_control:
                self.reconciler = Reconciler(self.server, self.events, self._say, watch=self._watch)
            self.server.start()
            self.events.watch(self.server.pid)
            self._progress = Progress(self.server, self._say)
        except (OSError, RuntimeError) as error:  # the latter of threads: there are too many
            raise ServerError(f"tritonserver cannot be started: {error}") from error
        self._turn(State.STARTING)

    def _turn(self, state: State) -> None:
        self.state, self.since = state, time.monotonic()
        self._next_report = 0.0

    def _start_up(self) -> None:
        if self.server.returncode is not None:
            self._on_death()
        elif self.server.is_ready():
            seconds = time.monotonic() - self.since
            self._turn(State.SERVING)
            self.trouble = ""
            again, self._serves, self._begun = self._begun, True, True
            if self.reconciler is not None:
                with suppress(ControlError):  # metadata may be restricted
                    self.version = self.server.control.version()
                self._look_after_models()
            self._publish()
            self._announce(seconds, again=again)
        elif why := self._progress.look(time.monotonic()):
            self._give_up(why)

    def _give_up(self, why: str) -> None:
        """It will never be ready."""
        self.server.request_stop(at_once=True)
        if self._begun:
            self._say(why)  # and once it has ended, it is started again
        else:
            self._close(ServerError(why))

    def _serve(self) -> None:
        self.served = time.monotonic()
        if self.server.returncode is not None:
            self._on_death()
        else:
            self._look_after_models()
            self._tell()
        if self.state is State.DRAINING and time.monotonic() - self.since > self._window:
            self._stop_service()

    def _tell(self) -> None:
        ready = frozenset(self.server.log.ready)
        if self._serving is not None and ready != self._told:
            self._told = ready
            self._serving(ready)

    def _look_after_models(self) -> None:
        if self.reconciler is not None:
            self.reconciler.tick(reload=self.state is State.SERVING)

    def _on_death(self) -> None:
        """It ended, and nobody had asked for it."""
        served = self.state is not State.STARTING
        self._turn(State.WAITING)
        self._close_reconciler()
        self._publish()  # before what it left is removed, which takes time
        error = self.server.log.why_it_ended(self.server.wait(), served=served)
        if not self._begun:
            self._close(error)
            return
        self.trouble = str(error)
        self.server.tolerate()
        self._due = self._backoff.failed(time.monotonic())
        wait = self._due - time.monotonic()
        self._say(f"{error}; starting it again" + (f" in {wait:.0f} s" if wait > 0 else ""))

    def _try_again(self) -> None:
        self.restarts += 1
        try:
            self._begin()
        except ServerError as error:  # no process was there, so one may try often
            self._close_reconciler()
            self._due = self._backoff.failed(time.monotonic(), longest=START_PAUSE)
            if self.trouble != str(error):
                self._say(f"{error}; it is tried again until it can be started")
            self.trouble = str(error)

    def _obey(self) -> None:
        if self._signals.is_urgent:
            self.server.request_stop(at_once=True)
        match self.state:
            case State.WAITING:
                self._close()
            case State.STARTING:
                self._stop_service()
            case State.SERVING if self._window:
                self._turn(State.DRAINING)
            case State.SERVING:
                self._stop_service()

    def _stop_service(self) -> None:
        self._turn(State.STOPPING)
        if not self._serves:
            self._close_reconciler()
        if self.reconciler is None:
            self.server.request_stop()

    def _stop(self) -> None:
        if self.server.returncode is None:
            self._finish()
            return
        self._close_reconciler()
        code, patience = self.server.wait(), self.server.settings.exit_timeout
        if not self._serves:
            self._close()  # nothing was in flight yet
        elif self._signals.is_urgent:
            self._close(ServerError("the server was ended with requests in flight"))
        elif code:
            late = f"it had not drained when the {patience} s of --exit-timeout-secs were over"
            self._close(ServerError(late))
        else:
            self._close()
            self._say("drained")

    def _finish(self) -> None:
        """Let what is in flight be finished."""
        if self.reconciler is None:
            self.server.stop_if_drained()
            return
        if time.monotonic() - self.since > self.server.settings.exit_timeout:
            self.server.request_stop(at_once=True)
        if self.reconciler.drain():
            self.server.stop_idle()

    def _close_reconciler(self) -> None:
        if self.reconciler is not None:
            self.reconciler.close()
            self.reconciler = None

    def _publish(self) -> None:
        if self.net["the report"].run(lambda: self._health.tell(**report.of(self._facts()))):
            self._next_report = time.monotonic() + REPORT

    def _facts(self) -> Facts:
        watched = self.reconciler
        return Facts(
            state=self.state,
            models=watched.models if watched is not None else None,
            is_heard=watched is not None and watched.is_heard,
            is_draining=self._signals.is_asked,
            trouble=self.trouble,
            pid=self.server.pid if self.server.returncode is None else None,
            version=self.version,
            restarts=self.restarts,
            since=self.since,
            served=self.served,
            errors={
                loop.name: {"errors": loop.errors, "error": loop.error} for loop in self.net.loops
            },
        )

    def _announce(self, seconds: float, *, again: bool) -> None:
        log = self.server.log
        for line in announcement.failures(log):
            self._say(line)
        if again:
            self._say(announcement.ready_again(log, seconds))
            return
        self._say(announcement.ready(log, seconds, self.server.endpoints))
