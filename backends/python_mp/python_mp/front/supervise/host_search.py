"""Waits for the other hosts that a replica needs."""

from __future__ import annotations

import logging
import os
import time

from ...model.config import Parameters
from ...wire.exchange_line import VARIABLE
from ..inbox import GroupEnded
from .other_hosts import Hosts, HostsMissing

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.1
"""Between two looks."""
_KEPT_SECONDS = 5.0
"""For which requests are kept meanwhile: an agent that ended is back within two or three, if
somebody starts it again."""


class HostSearch:
    """
    Args:
        name: the replica's, for the log.
        first: there was no generation before that served.
    """

    def __init__(self, name: str, parameters: Parameters, *, first: bool) -> None:
        self._name = name
        self._number = parameters.hosts - 1
        self._most = parameters.start_timeout_seconds
        self._first = first
        self._began = time.monotonic()
        self.missing = ""
        """Why there are too few."""

    @property
    def is_long(self) -> bool:
        """So that requests are not kept any more."""
        return not self._first and time.monotonic() - self._began >= _KEPT_SECONDS

    def look(self) -> Hosts | None:
        """None if there are too few now.

        Raises:
            GroupEnded: a first start takes no longer than any start may, a later one waits for
                ever; or no exchange was started with this server.
        """
        if not os.environ.get(VARIABLE):
            raise GroupEnded(
                f"hosts {self._number + 1} needs other hosts, for which this server does not"
                " listen: start it again, now that a model has `hosts`, or with --agents"
            )
        try:
            return Hosts(self._number)
        except HostsMissing as missing:
            if not self.missing:
                log.warning("%s: %s; it waits for them", self._name, missing)
            self.missing = str(missing)
        if self._first and time.monotonic() - self._began >= self._most:
            raise GroupEnded(f"{self.missing}; it waited {self._most} s for them", killed=True)
        return None
