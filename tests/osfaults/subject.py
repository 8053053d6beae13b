"""What is tried out: something that serves, to which things happen while its calls fail."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.osfaults import strace
from tests.osfaults.cases import Case

RETURN_SECONDS = 5.0
"""Within which all is served again after the cause's end."""
SLACK_SECONDS = 10.0
"""On top, for a machine with too much to do; how long it took is told."""
NAP = 0.005
Make = Callable[[str, Iterable[strace.Call]], Iterator[Case]]


class Trouble(Exception):
    """What must not be."""


@dataclass(frozen=True)
class Outcome:
    case: Case
    how: str
    """What became of what happened, and of the requests meanwhile."""
    seconds: float
    """From the cause's end until all is served again."""
    trouble: str = ""
    """Empty if all is as it must be."""


class Subject(ABC):
    PHASES: tuple[str, ...]
    HOLD_SECONDS: float
    """For which a cause lasts, from what happens on."""
    FOLLOW: tuple[str, ...] = strace.FOLLOW

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def trace(self, phase: str) -> list[strace.Call]:
        """The calls of a phase."""
        self.prepare(phase)
        self.cause_ended = 0.0
        file = self.folder / "trace"
        with strace.attached(self.pid, *self.FOLLOW, *strace.record(file)):
            self.act(phase)
            wait(lambda: self.is_through(phase), RETURN_SECONDS + SLACK_SECONDS, phase)
            time.sleep(self.HOLD_SECONDS)
        self.recover(phase)
        return list(strace.calls(file))

    def cases(self, make: Make, phase: str) -> list[Case]:
        return list(make(phase, self.trace(phase)))

    def try_out(self, case: Case, hold: float = 0.0) -> Outcome:
        self.cause_ended = 0.0
        try:
            self.prepare(case.phase)
            faults = strace.inject(case.call, case.error, case.when)
            with strace.attached(self.pid, *self.FOLLOW, *faults):
                self.act(case.phase)
                time.sleep(hold or self.HOLD_SECONDS)
            self.cause_ended = time.monotonic()
            how = self.recover(case.phase)
            seconds = time.monotonic() - self.cause_ended
            refused = self.settle(case)
        except Trouble as trouble:
            log = self.log()
            self.renew()
            return Outcome(case, "", 0.0, f"{trouble}\n{log}")
        return Outcome(case, how or ("some refused" if refused else "all served"), seconds)

    cause_ended = 0.0
    """`time.monotonic` of the end of the faults."""

    @property
    @abstractmethod
    def pid(self) -> int: ...

    @abstractmethod
    def prepare(self, phase: str) -> None:
        """Makes it ready for the phase, without faults."""

    @abstractmethod
    def act(self, phase: str) -> None:
        """Lets it happen."""

    @abstractmethod
    def is_through(self, phase: str) -> bool: ...

    @abstractmethod
    def recover(self, phase: str) -> str:
        """Waits until all is served again; in words, what failed."""

    @abstractmethod
    def settle(self, case: Case) -> int:
        """Waits until every request is answered or refused; how many were refused."""

    @abstractmethod
    def log(self) -> str: ...

    @abstractmethod
    def renew(self) -> None:
        """Starts over after trouble."""

    @abstractmethod
    def close(self) -> None: ...


def wait(happened: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise Trouble(f"not within {seconds:.0f} s: {what}")
        time.sleep(NAP)
