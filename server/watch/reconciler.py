"""Keeps the models of one tritonserver alive, and as their files say."""

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from server.control import Version
from server.errors import ControlError, ModelError
from server.process.launch import TritonServer
from server.process.run import SEGMENTS
from server.watch import repository, stubs
from server.watch.backoff import DELAYS
from server.watch.events import Events
from server.watch.jobs import Jobs
from server.watch.model_state import Model, Said
from server.watch.probe import Probe
from server.watch.repository import Changes
from server.watch.stubs import Roster, Stub

POLL_SECONDS = 1.0
SEARCH_LOADING, SEARCH_CALM = 1.0, 30.0  # seconds; for stubs that nothing told us of
NEWS = 2  # answers after a moment, until one was asked for after it: the next was under way
UNHEARD_PAUSE = 2.0  # seconds at most between two tries to reach tritonserver
LOST_SECONDS = 3.0  # to drain in the usual way, where some requests will never be answered


class Reconciler:
    """Made right before its server is started; works from the first `tick` to `close`.

    A stub that died: its model is loaded once more, with a config that differs where nobody looks,
    so that Triton brings up all instances anew beside the old ones, switches over, and drops the
    old ones: healthy replicas and ensembles serve all the time. A plain load would do nothing, and
    from an unload to the next load nothing of the model would serve.

    Attributes:
        models: those that are to be served.
        has_news: whether the last look saw something new.

    Args:
        server: the one to look after.
        events: tell of stubs that end.
        say: takes the lines meant for the user.
        watch: whether to load what changes in the repository.
    """

    def __init__(
        self, server: TritonServer, events: Events, say: Callable[[str], None], *, watch: bool
    ) -> None:
        self.models: dict[str, Model] = {}
        self.has_news = True
        self._server = server
        self._net = server.net
        self._say = say
        self._folder = server.settings.model_repository
        self._changes = Changes(self._folder) if watch else None
        self._next_poll = 0.0
        self._events = events
        self._roster: Roster | None = None
        self._said = Said()
        self._heard: list[Version] | None = None
        self._segments = 0
        self._is_stale = True  # /proc may hold stubs that the roster lacks
        self._doomed: dict[int, float] = {}
        self._drained: set[str] = set()
        self._removed: dict[str, int] = {}  # models, by the number of Triton's answer at the time
        self._draining_since = 0.0
        self._has_lost = False  # a stub, and maybe what it had in hand
        self._idle = False
        self._jobs = Jobs(events.wake, say)
        self._probe: Probe | None = None

    def close(self) -> None:
        """Leave the server alone. A load that still runs ends with the server."""
        self._jobs.close()
        if self._probe is not None:
            self._probe.close()
        if self._roster is not None:
            self._roster.close()

    @property
    def is_heard(self) -> bool:
        """Whether tritonserver answers."""
        return self._probe is not None and self._probe.versions is not None

    @property
    def is_calm(self) -> bool:
        """Whether nothing is to be done but to wait for the next event."""
        return not self._jobs.names and not self._doomed and not self._has_suspects

    @property
    def _has_suspects(self) -> bool:
        return any(model.has_suspects for model in self.models.values())

    def tick(self, *, reload: bool = True) -> None:
        """One look at everything, and what follows from it. Loads run in threads of their own."""
        now = time.monotonic()
        if not self._net["the models' watch"].run(partial(self._watch, now)):
            self._is_stale = True  # what it had begun to do is done anew
        if self._changes is not None and reload and now >= self._next_poll:
            self._next_poll = now + POLL_SECONDS
            self._net["the repository's watch"].run(partial(self._follow, self._changes))

    def _watch(self, now: float) -> None:
        self._hide_segments()
        if self._probe is None:
            self._begin()
        self._finish_jobs()
        self._look(now)
        self._revive(now)
        if self._probe is not None:
            self._probe.hurry(not self.is_calm or not self.is_heard)

    def _hide_segments(self) -> None:
        """Before the stub that made one has anything to say."""
        changed = self._server.run.segments_changed()
        if changed != self._segments or not self.is_calm:
            self._server.run.hide_segments()
        self._segments = changed

    def _follow(self, changes: Changes) -> None:
        for name, present in changes.poll(self._jobs.names):
            self._reload(name) if present else self._unload(name)

    def _begin(self) -> None:
        for name, why in self._server.log.failures.items():
            self._model(name).reason = why
        self._roster = Roster(self._server.pid, self._events)
        loop = self._net["the probe of tritonserver"]
        self._probe = Probe(self._server.control, loop, self._events.wake)

    def drain(self) -> bool:
        """Unload everything, ensembles before their steps; True once nothing is in flight.

        Triton itself, told to end, serves on as long as its clients keep their connections. And it
        waits for ever for what a stub had in hand that died: where one did, nothing is in flight
        any more when no stub lives.
        """
        self._finish_jobs()
        if self._idle or self._probe is None or self._probe.versions is None:
            return self._idle
        active = {version.model for version in self._probe.versions if version.is_active}
        needed = {step for name in active for step in self._model(name).steps()}
        self._draining_since = self._draining_since or time.monotonic()
        if self._has_lost and time.monotonic() - self._draining_since > LOST_SECONDS:
            needed = set()
            if {stub.pid for stub in stubs.living(self._server.pid)} <= self._doomed.keys():
                active = set()
                self._jobs.forget()
        for name in active - needed - self._jobs.names - self._drained:
            self._drained.add(name)
            self._start(name, lambda _: None, partial(self._server.control.unload, name))
        self._probe.hurry(True)
        self._idle = not active and not self._jobs.names
        if self._idle:
            self._probe.close()  # tritonserver would wait for its connection
        return self._idle

    def _look(self, now: float) -> None:
        if self._probe is None or self._roster is None:
            return
        answer, heard = self._probe.answers, self._probe.versions
        self._is_stale |= self._said.read(self._server.run.folder) or heard != self._heard
        self._heard = heard
        dead = self._roster.look(now, interval=self._search_interval())
        self.has_news = bool(dead) or self._is_stale or not self.is_calm
        self._remove_segments(dead)
        self._kill_doomed(now)
        self._is_stale = self.has_news and heard is not None and self._see(heard, answer)

    def _see(self, heard: list[Version], answer: int) -> bool:
        """Whether one should look once more."""
        versions = defaultdict[str, list[Version]](list)
        for version in heard:
            versions[version.model].append(version)
        living = [stub for stub in self._living if stub.pid not in self._doomed]
        said = self._said.of({stub.pid for stub in living})
        is_old = False
        for name in versions.keys() | self.models.keys():
            serves = any(version.is_ready for version in versions[name])
            is_news = answer - self._removed.get(name, -NEWS) >= NEWS
            if name in self.models or (serves and is_news):
                known = self._model(name)
                known.see(versions[name], living, said, answer, loading=name in self._jobs.names)
            is_old |= serves and not is_news
        return self._read_configs() or is_old

    def _search_interval(self) -> float:
        if self._is_stale:
            return 0.0
        if self._has_suspects:
            return 0.2
        return SEARCH_LOADING if self._jobs.names else SEARCH_CALM

    @property
    def _living(self) -> list[Stub]:
        return self._roster.living if self._roster is not None else []

    def _read_configs(self) -> bool:
        """Whether there were any to read. While a model is being loaded, its config says nothing of
        the stubs that there are."""
        known = [each for each in self.models.values() if each.needs_config]
        unread = [each for each in known if each.name not in self._jobs.names]
        for each in unread:
            with suppress(ControlError):  # it is not loaded any more
                each.config = self._server.control.config(each.name)
        return bool(unread)

    def _remove_segments(self, dead: list[Stub]) -> None:
        """Triton keeps the segment of a stub that died with a request in hand."""
        for stub in dead:
            if stub.segment.startswith(self._server.run.prefix) and "/" not in stub.segment:
                with suppress(OSError):  # else it goes with the run
                    (SEGMENTS / stub.segment).unlink(missing_ok=True)

    def _kill_doomed(self, now: float) -> None:
        """Triton never unloads instances if one of them died with a request in hand."""
        alive = {stub.pid for stub in self._living}
        self._doomed = {pid: end for pid, end in self._doomed.items() if pid in alive}
        for pid, end in self._doomed.items():
            if now > end:
                with suppress(ProcessLookupError):  # it just ended
                    os.kill(pid, signal.SIGKILL)

    def _revive(self, now: float) -> None:
        for name, hurt in self.models.items():
            self._mention(hurt)
            if name in self._jobs.names or not hurt.is_hurt:
                continue
            self._has_lost = True
            if hurt.due is None:
                hurt.due = hurt.deaths.failed(now)
                self._say(f"{name}: a stub died; loading the model again{_after(hurt.due - now)}")
            if now >= hurt.due:
                self._load_anew(name)

    def _mention(self, hurt: Model) -> None:
        """A passive instance lends cores or a device; its rank belongs to the leader, and lives."""
        passive = {group for group, is_passive in hurt.lost.items() if is_passive}
        for _, group in passive - hurt.mentioned:
            self._say(
                f"warning: {hurt.name}: a passive stub died ({group}); nothing is lost, and the"
                " next load brings it back"
            )
        hurt.mentioned = passive

    def _load_anew(self, name: str) -> None:
        hurt = self.models[name]
        old = [stub.pid for stub in self._living if stub.model == name]
        served = list(hurt.versions)

        def done(error: BaseException | None) -> None:
            now = time.monotonic()
            if error is None:
                hurt.due, hurt.reason = None, ""
                hurt.restarts += 1
                end = now + self._server.settings.exit_timeout
                self._doomed |= dict.fromkeys(old, end)
                return
            longest = UNHEARD_PAUSE if is_unheard(error) else DELAYS[-1]
            hurt.due, hurt.reason = hurt.deaths.failed(now, longest=longest), self._why(name, error)
            self._say(f"{name} did not load: {hurt.reason}; next try{_after(hurt.due - now)}")

        self._start(name, done, lambda: self._load_beside(name, served))

    def _load_beside(self, name: str, served: list[int]) -> None:
        control = self._server.control
        config = control.config(name)
        graph = config.setdefault("optimization", {}).setdefault("graph", {})
        graph["level"] = int(graph.get("level", 0)) + 1  # only TensorFlow's backend read it
        control.load(name, {**config, "version_policy": {"specific": {"versions": served}}})

    def _reload(self, name: str) -> None:
        def load() -> None:
            if harm := repository.objection(self._folder, name):
                raise ModelError(harm)
            repository.compile_sources(self._folder / name)
            self._server.control.load(name)

        def done(error: BaseException | None) -> None:
            known = self._model(name)
            before, known.reason = known.reason, "" if error is None else self._why(name, error)
            known.reloads["succeeded" if error is None else "failed"] += 1
            if is_unheard(error) and self._changes is not None:
                self._changes.again(name)
            if error is not None and known.reason != before:
                rest = "what was loaded before serves on" if known.versions else "it is not served"
                self._say(f"warning: {name} did not load: {known.reason}; {rest}")

        self._start(name, done, load)

    def _unload(self, name: str) -> None:
        def done(error: BaseException | None) -> None:
            if is_unheard(error) and self._changes is not None:
                self._changes.again(name)
                return
            self.models.pop(name, None)
            self._removed[name] = self._probe.answers if self._probe is not None else 0
            self._say(f"{name} was removed" if error is None else f"{name}: {error}")

        self._start(name, done, lambda: self._server.control.unload(name))

    def _start(
        self, name: str, done: Callable[[BaseException | None], None], work: Callable[[], None]
    ) -> None:
        self._server.log.failures.pop(name, None)
        self._jobs.start(name, done, work)

    def _finish_jobs(self) -> None:
        for name, job in self._jobs.take_finished():
            self._model(name).config = None
            self._is_stale = True
            job.done(job.future.exception())

    def _why(self, name: str, error: BaseException) -> str:
        return self._server.log.failures.get(name) or str(error)

    def _model(self, name: str) -> Model:
        return self.models.setdefault(name, Model(name))


def is_unheard(error: BaseException | None) -> bool:
    """Whether it is no word on the model: tritonserver was not reached, or there was no thread."""
    if isinstance(error, ControlError):
        return error.status is None
    return error is not None and not isinstance(error, ModelError)


def _after(seconds: float) -> str:
    return f" in {seconds:.0f} s" if seconds > 0 else " at once"
