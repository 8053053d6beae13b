"""What tritonserver is told to load and to unload."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial

from server.errors import ModelError, is_unheard
from server.process.launch import TritonServer
from server.watch import repository
from server.watch.jobs import Done, Jobs
from server.watch.model_state import Model
from server.watch.pool import Work

UNHEARD_PAUSE = 2.0  # seconds at most between two tries to reach tritonserver


class Loads:
    """For each model at most one order at a time, in a thread of its own.

    Args:
        known: the model of a name, which is made known by that.
        wake: is called, in any thread, once one is over.
        say: takes the lines meant for the user.
    """

    def __init__(
        self,
        server: TritonServer,
        known: Callable[[str], Model],
        wake: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._server = server
        self._known = known
        self._say = say
        self._jobs = Jobs(wake, say)

    @property
    def names(self) -> set[str]:
        """The models that have one."""
        return self._jobs.names

    def finish(self) -> Iterator[str]:
        """Books those that are over, in the caller's thread; gives their models' names."""
        for name, job in self._jobs.take_finished():
            job.done(job.future.exception())
            yield name

    def forget(self) -> None:
        """Wait for none of them any more."""
        self._jobs.forget()

    def close(self) -> None:
        """Begin nothing any more. What runs ends with tritonserver."""
        self._jobs.close()

    def load_anew(self, hurt: Model, replaced: Callable[[], None]) -> None:
        """Beside what is loaded, so that it comes up with all its stubs; then `replaced()`."""

        def done(error: BaseException | None) -> None:
            if error is None:
                hurt.due, hurt.reason = None, ""
                hurt.restarts += 1
                replaced()
                return
            longest = UNHEARD_PAUSE if is_unheard(error) else math.inf
            hurt.due = hurt.deaths.failed(time.monotonic(), longest=longest)
            hurt.reason = self._why(hurt.name, error)
            wait = after(hurt.due - time.monotonic())
            self._say(f"{hurt.name} did not load: {hurt.reason}; next try{wait}")

        self._start(hurt.name, done, partial(self._load_beside, hurt.name, list(hurt.versions)))

    def _load_beside(self, name: str, served: list[int]) -> None:
        control = self._server.control
        config = control.config(name)
        graph = config.setdefault("optimization", {}).setdefault("graph", {})
        graph["level"] = int(graph.get("level", 0)) + 1  # only TensorFlow's backend read it
        control.load(name, {**config, "version_policy": {"specific": {"versions": served}}})

    def load_changed(self, name: str, later: Callable[[str], None]) -> None:
        """As its files say now; `later(name)` if tritonserver was not reached. A new model is known
        once it has been tried: until then nobody waits for it."""
        folder = self._server.settings.model_repository

        def load() -> None:
            if harm := repository.objection(folder, name):
                raise ModelError(harm)
            repository.compile_sources(folder / name)
            self._server.control.load(name)

        def done(error: BaseException | None) -> None:
            model = self._known(name)
            before, model.reason = model.reason, "" if error is None else self._why(name, error)
            model.reloads["succeeded" if error is None else "failed"] += 1
            if is_unheard(error):
                later(name)
            if error is not None and model.reason != before:
                rest = "what was loaded before serves on" if model.versions else "it is not served"
                self._say(f"warning: {name} did not load: {model.reason}; {rest}")

        self._start(name, done, load)

    def unload_removed(
        self, name: str, later: Callable[[str], None], gone: Callable[[], None]
    ) -> None:
        """A model without files; `later(name)` if tritonserver was not reached, else `gone()`."""

        def done(error: BaseException | None) -> None:
            if is_unheard(error):
                later(name)
                return
            gone()
            self._say(f"{name} was removed" if error is None else f"{name}: {error}")

        self._start(name, done, partial(self._server.control.unload, name))

    def unload_drained(self, name: str) -> None:
        """At the end of service. Nobody asks how it went: the server's end follows."""
        self._start(name, lambda _: None, partial(self._server.control.unload, name))

    def _start(self, name: str, done: Done, work: Work) -> None:
        self._server.log.failures.pop(name, None)
        self._jobs.start(name, done, work)

    def _why(self, name: str, error: BaseException) -> str:
        return self._server.log.failures.get(name) or str(error)


def after(seconds: float) -> str:
    """For a sentence's end."""
    return f" in {seconds:.0f} s" if seconds > 0 else " at once"
