"""Which request is to blame when a group dies.

Nobody can tell from one death: all that was in hand is suspect. Suspects run one at a time
afterwards, with nothing else in flight, so a second death names its cause. The guilty one is
refused, everybody else is computed again.

A SIGKILL mostly comes from outside (an operator, the kernel short of memory), so it weighs half.
An exception is a request's own doing: if one was alone in hand, there is nothing left to find out.
"""

from __future__ import annotations

from ..batch import Request
from .inbox import GroupEnded

GUILTY = 2.0
CRASH = 1.0
KILL = 0.5


def guilty(in_hand: list[Request], ended: GroupEnded) -> list[Request]:
    """Raises the suspicion against all that was in hand; those that are not to be replayed."""
    for request in in_hand:
        request.suspicion += KILL if ended.killed else CRASH
        request.alone = True
    if ended.raised and len(in_hand) == 1:
        return in_hand
    return [request for request in in_hand if request.suspicion >= GUILTY]
