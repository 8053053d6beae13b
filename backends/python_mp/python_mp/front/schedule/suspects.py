"""Which stream ends groups: found by halving, and only where there is need.

A stream that was given a token since the last death is no suspect, so all go on together after a
death. Those with which a second group dies, without a token in between, are computed by
themselves, half of them at a time, then a quarter, until the guilty one is alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..inbox import GroupEnded
from ..supervise.poison import CRASH, GUILTY, KILL
from .stream import Stream


def judge(in_flight: Sequence[Stream], ended: GroupEnded) -> list[Stream]:
    """Books a death against the streams that the ranks had in hand; those to be refused."""
    for stream in in_flight:
        stream.suspicion += KILL if ended.killed else CRASH
        stream.deaths += 1
    suspects = [stream for stream in in_flight if stream.deaths > 1]
    for stream in suspects:
        stream.company = (len(suspects) + 1) // 2
    is_alone = len(in_flight) == 1
    return [s for s in suspects if is_alone and (ended.raised or s.suspicion >= GUILTY)]


def group(suspects: Collection[Stream]) -> Collection[Stream]:
    """Those that are computed next, and nothing with them: of the smallest company, the oldest."""
    company = min(stream.company for stream in suspects)
    likely = (stream for stream in suspects if stream.company == company)
    return sorted(likely, key=lambda stream: stream.arrived)[: int(company)]
