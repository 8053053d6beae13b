"""Which streams run, and how many tokens of each the next step computes.

    waiting --blocks for all its tokens--> running --each step: some tokens--> sampled --> ended
       ^                                      |
       +-- no block left: the latest one -----+

Streams begin in the order in which they came, and blocks are taken from the latest, so the oldest
always gets on. Who was stopped in the middle goes on before anybody new begins.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable

from .block_pool import BLOCK, BlockPool
from .generation_step import Chunk
from .pace import Pace
from .stream import Stream
from .waiting import Waiting

MayRun = Callable[[Stream], bool]


class Running:
    """
    Args:
        waiting: where streams come from, and go back to.
        most: streams that may run.
        steps: how many the ranks can have at a time; the streams are shared among them.
        preempted: called for each that has lost its blocks.
    """

    def __init__(
        self, waiting: Waiting[Stream], most: int, steps: int, preempted: Callable[[], None]
    ) -> None:
        self._waiting = waiting
        self._most = most
        self._steps = steps
        self._preempted = preempted
        self.pace = Pace()
        self.pool = BlockPool(0)
        self.streams: list[Stream] = []
        """In the order in which they came."""
        self._flying: Counter[Stream] = Counter()
        """Of each, the steps that the ranks are not through with: of a prompt there may be many."""

    def start_over(self, blocks: int) -> list[Stream]:
        """With an empty cache; those that ran."""
        streams, self.streams = self.streams, []
        for stream in streams:
            stream.runs = False
            stream.pages.forget()
        self.pool = BlockPool(blocks)
        self._flying.clear()
        return streams

    def cut(self, budget: int, may_run: MayRun) -> list[Chunk]:
        """The next step: tokens of those that run and of those that may begin now."""
        # A prompt's next piece may follow the one before while that is on its way.
        ready = sorted((s for s in self.streams if s.missing and may_run(s)), key=_turn)
        ready = ready[: -(-len(self.streams) // self._steps)]
        chunks: list[Chunk] = []
        left = self._go_on([s for s in ready if s.missing == 1], budget, chunks)
        if chunks:
            begin = sum(s.missing > 1 for s in self.streams) + len(self._waiting)
            left = self.pace.most(left, len(chunks), begin)
        left = self._go_on([s for s in ready if s.missing > 1], left, chunks)
        while left and (begun := self._begin(may_run)):
            chunks.append(self._chunk(begun, min(begun.missing, left)))
            left -= chunks[-1].tokens
        self._flying.update(chunk.stream for chunk in chunks)
        return chunks

    def landed(self, streams: Iterable[Stream]) -> None:
        """The ranks are through with the oldest step, in which these are."""
        for stream in streams:
            if self._flying[stream] > 1:
                self._flying[stream] -= 1
            else:
                self._flying.pop(stream, None)

    def _go_on(self, streams: Iterable[Stream], budget: int, chunks: list[Chunk]) -> int:
        """What is left of the budget."""
        for stream in streams:
            tokens = min(stream.missing, budget)
            # One that was to go on may have lost its blocks to one before it.
            if stream.runs and tokens and self._make_room(stream, tokens, chunks):
                chunks.append(self._chunk(stream, tokens))
                budget -= tokens
        return budget

    def leave(self, stream: Stream) -> None:
        """Its blocks may be had at once: what a step in flight still writes there is written
        before anything that is cut from now on."""
        if stream.runs:
            stream.runs = False
            self._flying.pop(stream, None)
            stream.pages.close(self.pool)
            self.streams.remove(stream)

    def _chunk(self, stream: Stream, tokens: int) -> Chunk:
        start = stream.pages.cached
        stream.pages.write(self.pool, tokens)
        return Chunk(stream, start, start + tokens, start + tokens == stream.length)

    def _make_room(self, stream: Stream, tokens: int, chunks: Iterable[Chunk]) -> bool:
        taken = {chunk.stream for chunk in chunks} | self._flying.keys()
        while not stream.pages.grow(self.pool, stream.pages.cached + tokens):
            victim = next(each for each in reversed(self.streams) if each not in taken)
            self.leave(victim)
            self._waiting.put_back([victim])
            self._preempted()
            if victim is stream:
                return False
        return True

    def _begin(self, may_run: MayRun) -> Stream | None:
        """Nobody is passed over because he needs more than there is. A block for each that runs is
        left, or the next step would have to take back what this one gives."""
        if len(self.streams) >= self._most:
            return None
        stream = self._next(may_run)
        if stream is None or not stream.pages.open(self.pool, stream.length, len(self.streams)):
            return None
        self._waiting.remove(stream)
        insort(self.streams, stream, key=_arrived)
        stream.runs = True
        stream.most = min(stream.most, self.pool.blocks * BLOCK)
        return stream

    def _next(self, may_run: MayRun) -> Stream | None:
        waiting = [each for each in self._waiting if may_run(each)]
        stopped = [each for each in waiting if each.generated]
        return min(stopped, key=_missing) if stopped else next(iter(waiting), None)


def _arrived(stream: Stream) -> float:
    return stream.arrived


def _missing(stream: Stream) -> int:
    return stream.missing


def _turn(stream: Stream) -> tuple[bool, bool, float]:
    """Next tokens first; then those that go on, the shortest first; then new ones."""
    goes_on = stream.generated > 0
    return stream.missing > 1, not goes_on, stream.missing if goes_on else stream.arrived
