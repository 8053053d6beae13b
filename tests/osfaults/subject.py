"""What is tried out: something that serves, to which things happen while its calls fail."""

import time
from collections.abc import Callable
from pathlib import Path

from tests.osfaults import strace
from tests.osfaults.board import NAP
from tests.osfaults.cases import Case, Make

RETURN_SECONDS = 5.0
"""Within which all is served again after the cause's end."""
SLACK_SECONDS = 10.0
"""On top, for a machine with too much to do."""


class Trouble(Exception):
    """What must not be."""


class Subject:
    """Of its own a subject has: `pid`, of the process whose calls fail; `prepare(phase)`, which
    makes it ready without faults; `act(phase)`, which lets it happen, and `is_through(phase)`;
    `recover(phase)`, which waits until all is served again, or was done once more after it had said
    why it failed; `log()`; `renew()`, which starts over after trouble; `close()`."""

    PHASES: tuple[str, ...]
    HOLD_SECONDS: float
    """For which a cause lasts, from what happens on."""
    FOLLOW = strace.FOLLOW
    USUAL: tuple[tuple[str, ...], int]
    """What `make test` tries: phases, and how many calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cause_ended = 0.0
        """`time.monotonic` of the end of the faults."""

    def settle(self, case: Case) -> None:
        """Waits until every request that was sent meanwhile has its answer."""

    def trace(self, phase: str) -> list[str]:
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

    def cases(self, make: Make, *phases: str) -> list[Case]:
        return [case for phase in phases for case in make(phase, self.trace(phase))]

    def try_out(self, case: Case) -> str:
        """What is wrong; empty if all is as it must be."""
        self.cause_ended = 0.0
        try:
            self.prepare(case.phase)
            faults = strace.inject(case.call, case.error, case.when)
            with strace.attached(self.pid, *self.FOLLOW, *faults):
                self.act(case.phase)
                time.sleep(self.HOLD_SECONDS)
            self.cause_ended = time.monotonic()
            self.recover(case.phase)
            self.settle(case)
        except Trouble as trouble:
            log = self.log()
            self.renew()
            return f"{case}: {trouble}\n{log}"
        return ""


def wait(happened: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise Trouble(f"not within {seconds:.0f} s: {what}")
        time.sleep(NAP)
