"""Which request is to blame when a group dies.

Nobody can tell from one death: all that was in hand is suspect. Suspects run one at a time
afterwards, with nothing else in flight, so a second death names its cause. The guilty one is
refused, everybody else is computed again. Its content is remembered for a while, so that a client
that tries again does not end two more groups.

A SIGKILL mostly comes from outside (an operator, the kernel short of memory), so it weighs half.
An exception is a request's own doing: if one was alone in hand, there is nothing left to find out.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from ..batch import Request
from .inbox import GroupEnded

GUILTY = 2.0
CRASH = 1.0
KILL = 0.5
REMEMBER_SECONDS = 60.0
_MOST_REMEMBERED = 1024


def guilty(in_hand: list[Request], ended: GroupEnded) -> list[Request]:
    """Raises the suspicion against all that was in hand; those that are not to be replayed."""
    for request in in_hand:
        request.suspicion += KILL if ended.killed else CRASH
        request.alone = True
    if ended.raised and len(in_hand) == 1:
        return in_hand
    return [request for request in in_hand if request.suspicion >= GUILTY]


class Condemned:
    """Contents of requests that have ended two groups, for a minute; of the latest 1024."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def add(self, request: Request) -> None:
        """Books what the request was refused for. An exception may have been the only one."""
        _, deaths = self._deaths.pop(request.content, (0.0, 0.0))
        until = time.monotonic() + REMEMBER_SECONDS
        self._deaths[request.content] = until, deaths + request.suspicion
        if len(self._deaths) > _MOST_REMEMBERED:
            self._deaths.popitem(last=False)

    def __contains__(self, request: Request) -> bool:
        if not self._deaths:  # Nobody pays for hashes as long as nothing has happened.
            return False
        until, deaths = self._deaths.get(request.content, (0.0, 0.0))
        return deaths >= GUILTY and time.monotonic() < until
