"""Orders to Triton that are under way, each in a thread of a pool."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from server.watch.pool import Pool, Work

WORD_SECONDS = 60.0  # between two lines about a load that takes long
LOADS = 4  # at once

Done = Callable[[BaseException | None], None]


@dataclass
class Job:
    """One order; `done` takes its error, or None, in the caller's thread."""

    done: Done
    future: Future[None]
    since: float = field(default_factory=time.monotonic)
    next_word: float = field(default_factory=lambda: time.monotonic() + WORD_SECONDS)


class Jobs:
    """At most one for each model.

    Args:
        wake: is called, in any thread, once one is over.
        say: takes the lines meant for the user.
    """

    def __init__(self, wake: Callable[[], None], say: Callable[[str], None]) -> None:
        self._wake = wake
        self._say = say
        self._pool = Pool(LOADS, "load")
        self._jobs: dict[str, Job] = {}

    @property
    def names(self) -> set[str]:
        """The models that have one."""
        return set(self._jobs)

    def start(self, name: str, done: Done, work: Work) -> None:
        """Let `work` be done for a model that has none yet."""
        future = self._pool.submit(work)
        future.add_done_callback(lambda _: self._wake())
        self._jobs[name] = Job(done, future)

    def take_finished(self) -> Iterator[tuple[str, Job]]:
        """Those that are over, with their models' names; each once. Tells of those that last."""
        now = time.monotonic()
        for name, job in list(self._jobs.items()):
            if job.future.done():
                del self._jobs[name]
                yield name, job
            elif now >= job.next_word:
                job.next_word = now + WORD_SECONDS
                self._say(f"{name}: tritonserver has been at it for {now - job.since:.0f} s")

    def forget(self) -> None:
        """Wait for none of them any more."""
        self._jobs = {}

    def close(self) -> None:
        """Begin nothing any more. What runs ends with tritonserver."""
        self._pool.close()
