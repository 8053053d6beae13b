"""One net round the body of every loop of the watcher: what it did not expect ends no loop."""

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

DELAYS = (0.1, 0.2, 0.5, 1.0, 2.0)  # seconds; once its cause is gone, a fault is soon over
Say = Callable[[str], None]


class Loop:
    """Runs one body again and again, with longer pauses while it fails.

    Attributes:
        name: what the body does, in words.
        errors: how many there were.
        error: what its last run failed with; empty if it did not.
    """

    def __init__(self, name: str, say: Say) -> None:
        self.name = name
        self.errors = 0
        self.error = ""
        self._say = say
        self._failures = 0  # without a success in between
        self._due = 0.0

    def run(self, body: Callable[[], object]) -> bool:
        """Whether `body` ran to its end. While the pause after an error lasts, it is not run."""
        if time.monotonic() < self._due:
            return False
        try:
            body()
        except Exception as error:
            self._failed(error)
            return False
        if self.error:
            self.error, self._failures = "", 0
            self._tell(f"{self.name}: works again")
        return True

    @property
    def pause(self) -> float:
        """Seconds that are left of the pause after an error."""
        return max(0.0, self._due - time.monotonic())

    def _failed(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self.errors += 1
        self._due = time.monotonic() + DELAYS[min(self._failures, len(DELAYS) - 1)]
        self._failures += 1
        known, self.error = self.error, text
        if known != text:
            trace = "".join(traceback.format_exception(error)).rstrip()
            self._tell(f"error: {self.name}: {text}; it is tried again\n{trace}")

    def _tell(self, line: str) -> None:
        with suppress(Exception):
            self._say(line)


class Net:
    """The loops of one watcher, by name. Each belongs to one thread.

    Args:
        say: takes a line for the log.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._loops: dict[str, Loop] = {}

    def __getitem__(self, name: str) -> Loop:
        return self._loops.setdefault(name, Loop(name, self._say))

    def report(self) -> dict[str, dict[str, Any]]:
        """Of each loop how many errors there were, and which one it has now."""
        return {
            name: {"errors": loop.errors, "error": loop.error}
            for name, loop in sorted(self._loops.copy().items())
        }
