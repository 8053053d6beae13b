"""Keeps the models of one tritonserver alive, and as their files say."""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from python_mp.model import ensembles
from server.control import Version
from server.errors import ControlError
from server.process.launch import TritonServer
from server.process.run import SEGMENTS
from server.watch import stubs
from server.watch.drain import Drain
from server.watch.events import Events
from server.watch.loads import Loads, after
from server.watch.model_state import Model
from server.watch.probe import Probe
from server.watch.replaced import Replaced
from server.watch.repository import Changes
from server.watch.said import Said
from server.watch.stubs import Roster, Stub

POLL_SECONDS = 1.0
SEARCH_LOADING, SEARCH_CALM = 1.0, 30.0  # seconds; for stubs that nothing told us of
NEWS = 2  # answers after a moment, until one was asked for after it: the next was under way


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
        self._changes = Changes(server.settings.model_repository) if watch else None
        self._next_poll = 0.0
        self._events = events
        self._roster: Roster | None = None
        self._said = Said()
        self._heard: list[Version] | None = None
        self._segments = 0
        self._is_stale = True  # /proc may hold stubs that the roster lacks
        self._replaced = Replaced()
        self._removed: dict[str, int] = {}  # models, by the number of Triton's answer at the time
        self._has_lost = False  # a stub, and maybe what it had in hand
        self._loads = Loads(server, self._model, events.wake, say)
        self._drain = Drain(self._loads)
        self._probe: Probe | None = None

    def close(self) -> None:
        """Leave the server alone. A load that still runs ends with the server."""
        self._loads.close()
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
        return not self._loads.names and not self._replaced and not self._has_suspects

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
        self._finish_loads()
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
        for name, present in changes.poll(self._loads.names):
            if present:
                self._loads.load_changed(name, changes.again)
            else:
                self._loads.unload_removed(name, changes.again, partial(self._forget, name))
        for name, recipe in changes.unbuilt.items():
            self._model(name).recipe = recipe

    def _forget(self, name: str) -> None:
        self.models.pop(name, None)
        self._removed[name] = self._probe.answers if self._probe is not None else 0

    def _begin(self) -> None:
        for name, why in self._server.log.failures.items():
            self._model(name).reason = why
        self._roster = Roster(self._server.pid, self._events)
        loop = self._net["the probe of tritonserver"]
        self._probe = Probe(self._server.control, loop, self._events.wake)

    def drain(self) -> bool:
        """Unload everything; True once nothing is in flight."""
        self._finish_loads()
        if self._drain.is_over or self._probe is None or self._probe.versions is None:
            return self._drain.is_over
        active = {version.model for version in self._probe.versions if version.is_active}
        stuck = self._drain.waited_for_the_lost() and self._has_lost
        if stuck and all(stub.pid in self._replaced for stub in stubs.living(self._server.pid)):
            active = set()
            self._loads.forget()
        self._drain.step(self.models, active, ordered=not stuck)
        self._probe.hurry(True)
        if self._drain.is_over:
            self._probe.close()  # tritonserver would wait for its connection
        return self._drain.is_over

    def _look(self, now: float) -> None:
        if self._probe is None or self._roster is None:
            return
        answer, heard = self._probe.answers, self._probe.versions
        self._is_stale |= self._said.read(self._server.run.folder) or heard != self._heard
        self._heard = heard
        dead = self._roster.look(now, interval=self._search_interval())
        self.has_news = bool(dead) or self._is_stale or not self.is_calm
        self._remove_segments(dead)
        self._replaced.kill(now, {stub.pid for stub in self._living})
        self._is_stale = self.has_news and heard is not None and self._see(heard, answer)

    def _see(self, heard: list[Version], answer: int) -> bool:
        """Whether one should look once more."""
        versions = defaultdict[str, list[Version]](list)
        for version in heard:
            versions[version.model].append(version)
        living = [stub for stub in self._living if stub.pid not in self._replaced]
        said = self._said.of({stub.pid for stub in living})
        is_old = False
        for name in versions.keys() | self.models.keys():
            serves = any(version.is_ready for version in versions[name])
            is_news = answer - self._removed.get(name, -NEWS) >= NEWS
            if name in self.models or (serves and is_news):
                known = self._model(name)
                known.see(versions[name], living, said, answer, loading=name in self._loads.names)
            is_old |= serves and not is_news
        return self._read_configs() or is_old

    def _search_interval(self) -> float:
        if self._is_stale:
            return 0.0
        if self._has_suspects:
            return 0.2
        return SEARCH_LOADING if self._loads.names else SEARCH_CALM

    @property
    def _living(self) -> list[Stub]:
        return self._roster.living if self._roster is not None else []

    def _read_configs(self) -> bool:
        """Whether there were any to read. While a model is being loaded, its config says nothing of
        the stubs that there are."""
        known = [each for each in self.models.values() if each.needs_config]
        unread = [each for each in known if each.name not in self._loads.names]
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

    def _revive(self, now: float) -> None:
        for name, hurt in self.models.items():
            self._mention(hurt)
            if name in self._loads.names or not hurt.is_hurt:
                continue
            self._has_lost = True
            if hurt.due is None:
                hurt.due = hurt.deaths.failed(now)
                self._say(f"{name}: a stub died; loading the model again{after(hurt.due - now)}")
            if now >= hurt.due:
                self._loads.load_anew(hurt, partial(self._replace, self._stubs_of(name)))

    def _stubs_of(self, name: str) -> list[int]:
        return [stub.pid for stub in self._living if stub.model == name]

    def _replace(self, pids: list[int]) -> None:
        self._replaced.add(pids, time.monotonic() + self._server.settings.exit_timeout)

    def _mention(self, hurt: Model) -> None:
        """A passive instance lends cores or a device; its rank belongs to the leader, and lives."""
        passive = {group for group, is_passive in hurt.lost.items() if is_passive}
        for _, group in passive - hurt.mentioned:
            self._say(
                f"warning: {hurt.name}: a passive stub died ({group}); nothing is lost, and the"
                " next load brings it back"
            )
        hurt.mentioned = passive

    def _finish_loads(self) -> None:
        for name in self._loads.finish():
            self._is_stale = True
            if name in self.models:
                self.models[name].config = None
            self._try_ensembles(name)

    def _try_ensembles(self, step: str) -> None:
        """Those that were not loaded for want of a step."""
        if self._changes is None:
            return
        folder = self._server.settings.model_repository
        for name, model in self.models.items():
            is_missing = model.reason and not model.versions
            if is_missing and step in ensembles.steps(folder / name / ensembles.CONFIG):
                self._changes.again(name)

    def _model(self, name: str) -> Model:
        return self.models.setdefault(name, Model(name))
