"""The end of a tritonserver's service."""

import time
from collections.abc import Collection, Mapping

from server.watch.loads import Loads
from server.watch.model_state import Model

LOST_SECONDS = 3.0  # to drain in the usual way, where some requests will never be answered


class Drain:
    """Unloads everything, ensembles before their steps.

    Triton itself, told to end, serves on as long as its clients keep their connections. And it
    waits for ever for what a stub had in hand that died: where one did, nothing is in flight any
    more when no stub lives.

    Attributes:
        is_over: nothing is in flight any more.
    """

    def __init__(self, loads: Loads) -> None:
        self.is_over = False
        self._loads = loads
        self._asked: set[str] = set()
        self._since = 0.0

    def waited_for_the_lost(self) -> bool:
        """Whether what may never be answered had its time."""
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since > LOST_SECONDS

    def step(self, models: Mapping[str, Model], active: Collection[str], *, ordered: bool) -> None:
        """Unloads what may go now.

        Args:
            active: models of which something is in flight, or may be.
            ordered: wait with the steps of an ensemble until it is gone.
        """
        needed = {step for name in active if name in models for step in models[name].steps()}
        for name in set(active) - (needed if ordered else set()) - self._loads.names - self._asked:
            self._asked.add(name)
            self._loads.unload_drained(name)
        self.is_over = not active and not self._loads.names
