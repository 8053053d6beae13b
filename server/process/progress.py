"""What becomes of a start: how far it is, and whether it will ever end."""

import time
from collections.abc import Callable
from contextlib import suppress

from python_mp.machine.vital import vital
from server.process.launch import TritonServer
from server.watch import repository, stubs, unbuilt

LOOK, WORD = 1.0, 60.0  # seconds between two looks, and between two lines of the log
STUCK_SECONDS = 10.0
BUSY = 0.05  # of a processor


class Progress:
    """Of one start. A model may load for hours. But a stub that aborts before it has said anything
    is waited for by tritonserver for ever."""

    def __init__(self, server: TritonServer, say: Callable[[str], None]) -> None:
        self._server = server
        self._say = say
        self._begun = time.monotonic()
        self._next_look = self._begun + LOOK
        self._next_word = self._begun + WORD
        self._moved = (self._begun, 0.0)

    def look(self, now: float) -> str:
        """Why the server will never be ready, in a sentence; empty as long as it may."""
        if now < self._next_look:
            return ""
        self._next_look = now + LOOK
        limit = self._server.settings.load_timeout
        if limit is not None and now - self._begun > limit:
            return f"the server was not ready within {limit:.0f} s (--load-timeout-secs)"
        missing = self._missing()
        if now >= self._next_word:
            self._next_word = now + WORD
            self._say(f"still loading after {now - self._begun:.0f} s: {', '.join(missing)}")
        if self._moves(now, missing):
            return ""
        tail = "; ".join(line for line in self._server.log.tail[-5:] if line.strip())
        return f"stubs of {', '.join(missing)} aborted while they started: {tail}"

    def _missing(self) -> list[str]:
        log = self._server.log
        folder = self._server.settings.model_repository
        known = repository.models(folder) - unbuilt.models(folder).keys()
        return sorted(known - log.ready - log.failures.keys())

    def _moves(self, now: float, missing: list[str]) -> bool:
        pid = self._server.pid
        used = _processor_seconds(pid)
        since, before = self._moved
        at_work = any(stub.model in missing for stub in stubs.living(pid))
        if at_work or not stubs.zombies(pid) or used - before > BUSY * LOOK:
            self._moved = now, used
            return True
        self._moved = since, used
        return now - since < STUCK_SECONDS


def _processor_seconds(pid: int) -> float:
    with suppress(OSError):
        return vital(pid).cpu_seconds
    return 0.0
