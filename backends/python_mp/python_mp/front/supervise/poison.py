"""Which request has ended a group, and which may not end another one.

Nobody can tell from one death: all that was in hand is suspect. Suspects run one at a time
afterwards, with nothing else in flight, so a second death names its cause. The guilty one is
refused, everybody else is computed again. Its content is remembered for a while, here and by the
other replicas, so that a client that tries again does not end more groups.

A SIGKILL mostly comes from outside (an operator, the kernel short of memory), so it weighs half.
An exception is a request's own doing: if one was alone in hand, there is nothing left to find out.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from threading import Lock

from ...model.request import Request
from ..inbox import GroupEnded

GUILTY = 2.0
CRASH = 1.0
KILL = 0.5
REMEMBER_SECONDS = 60.0
_MOST_REMEMBERED = 1024
_MOST_TOLD = 512


def guilty(in_hand: list[Request], ended: GroupEnded) -> list[Request]:
    """Raises the suspicion against all that was in hand; those that are not to be replayed."""
    for request in in_hand:
        request.suspicion += KILL if ended.killed else CRASH
        request.alone = True
    if ended.raised and len(in_hand) == 1:
        return in_hand
    return [request for request in in_hand if request.suspicion >= GUILTY]


class PoisonList:
    """Contents of requests that have ended groups, for a minute; of the latest 1024. Any thread may
    call. To look one up may mean to hash it, so hold no lock."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._deaths: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By content: until when it is remembered, and for how many deaths."""

    def __bool__(self) -> bool:
        """Whether anything is remembered; what is over is forgotten."""
        now = time.monotonic()
        with self._lock:
            while self._deaths and next(iter(self._deaths.values()))[0] <= now:
                self._deaths.popitem(last=False)
            return bool(self._deaths)

    def __contains__(self, request: Request) -> bool:
        if not self:  # Nobody pays for hashes as long as nothing has happened.
            return False
        content = request.content.hex()
        with self._lock:
            return self._known(content)[1] >= GUILTY

    def add(self, request: Request) -> None:
        """Books what the request was refused for. An exception may have been the only one."""
        content = request.content.hex()
        with self._lock:
            _, deaths = self._known(content)
            self._book(content, REMEMBER_SECONDS, deaths + request.suspicion)

    def tell(self) -> str:
        """For peers, JSON: contents, the seconds left and the deaths; empty if nothing."""
        now = time.monotonic()
        with self._lock:
            latest = list(self._deaths.items())[-_MOST_TOLD:]
        told = {each: (until - now, deaths) for each, (until, deaths) in latest if until > now}
        return json.dumps(told) if told else ""

    def hear(self, told: str) -> None:
        """Takes what a peer tells. To hear it again changes nothing."""
        for content, (seconds, deaths) in json.loads(told).items():
            with self._lock:
                left, known = self._known(content)
                self._book(content, max(left, seconds), max(known, deaths))

    def _known(self, content: str) -> tuple[float, float]:
        """Seconds left, and deaths."""
        until, deaths = self._deaths.get(content, (0.0, 0.0))
        left = until - time.monotonic()
        return (left, deaths) if left > 0 else (0.0, 0.0)

    def _book(self, content: str, seconds: float, deaths: float) -> None:
        self._deaths[content] = time.monotonic() + seconds, deaths
        self._deaths.move_to_end(content)
        if len(self._deaths) > _MOST_REMEMBERED:
            self._deaths.popitem(last=False)
