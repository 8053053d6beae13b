"""What replicas tell each other of requests that end groups.

    here: `spread`                          there: guests.py
    POISON: what is known here         -->
    PULSE                              -->
                                       <--  POISON: what is known there
                                       <--  PULSE: all of the above is heard

A replica that puts a request on its poison list does so before the client hears of it, so that
nobody who asks again finds a peer that does not know. One that is loaded does so before it serves.
Whom it does not reach in time it tells again later: see away.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Protocol

from ...wire.message import Kind
from . import line
from .line import Line


class Informed(Protocol):
    """Who knows what is on the poison list."""

    def poison_list(self) -> str:
        """What is known here; empty if nothing."""

    def hear(self, told: str) -> None:
        """What is known elsewhere."""


def tell(connection: Line, informed: Informed) -> None:
    """The first that either side says on a new connection. Raises OSError."""
    if text := informed.poison_list():
        connection.send(Kind.POISON, text=text)


def spread(informed: Informed, folder: Path, names: Iterable[str]) -> bool:
    """Tells these peers, and hears them; whether all have heard. Those that are hung cost a pulse
    together."""
    until = time.monotonic() + line.PULSE_SECONDS
    with ExitStack() as stack:
        lines = [_tell(informed, folder, name, stack) for name in names]
        heard = [each is not None and _hear(informed, each, until) for each in lines]
    return all(heard)


def _tell(informed: Informed, folder: Path, name: str, stack: ExitStack) -> Line | None:
    with suppress(OSError):
        there = stack.enter_context(closing(line.connect(folder, name)))
        tell(there, informed)
        there.send(Kind.PULSE)
        return there
    return None


def _hear(informed: Informed, there: Line, until: float) -> bool:
    """Whether it has heard."""
    with suppress(OSError):
        there.wait_at_most(until - time.monotonic())
        while received := there.receive():
            message, _ = received
            if message.kind is Kind.PULSE:
                return True
            if message.kind is Kind.POISON:
                informed.hear(message.text)
    return False
