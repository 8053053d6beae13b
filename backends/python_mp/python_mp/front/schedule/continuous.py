"""The schedule of decoders: a token for each stream that runs, step after step."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from ...model.batch import Batch
from ...model.config import ModelConfig
from ...model.errors import InvalidInput, PythonMpError, RequestFailed, TooLarge
from ...model.request import Array, Outputs
from ...wire.message import Refusal
from ..flights import Flight, Flights
from ..inbox import GroupEnded
from ..metrics import Metrics
from ..refusing import Refusals
from . import suspects, travelling
from .block_pool import BLOCK, blocks_for
from .cutting import Running
from .generation_step import NO_NUMBERS, Chunk, GenerationStep
from .outbox import Outbox
from .reading import StreamReader
from .stream import Stream, StreamAnswer, Token
from .waiting import Waiting

_NO_NUMBERS = "the model's logits are not numbers: they hold NaN or infinity"


class Continuous(Waiting[Stream]):
    """Its batches are steps. What a group had in hand goes on where it was: prompt and generated
    tokens are the input of the next group.

    Args:
        give_up: takes a stream out, with the replica's lock, and refuses it.
    """

    is_quick = False

    def __init__(
        self,
        config: ModelConfig,
        refusals: Refusals,
        give_up: Callable[[Stream, PythonMpError], None],
        metrics: Metrics,
    ) -> None:
        super().__init__(config.parameters)
        self._metrics = metrics
        sizes = config.parameters
        # So that at least half of each step is for prompts.
        most = min(sizes.max_running_sequences, max(1, sizes.max_batch_tokens // 2))
        self._running = Running(self, most, sizes.pipeline_parallel_size, self._count_preemption)
        self._reader = StreamReader(config)
        self._suspects: set[Stream] = set()
        self._epoch = 0
        self._numbers = count(1)
        self._outbox = Outbox(refusals, give_up, metrics)

    # -- what comes and goes ---------------------------------------------------------------------

    def start(self) -> None:
        self._outbox.start()

    @property
    def has_open(self) -> bool:
        return bool(self._running.streams or self._lent or len(self))

    def prepare(self, request: Stream) -> list[Stream]:
        return [request]

    def add(self, request: Stream) -> None:
        if misfit := self._misfit(request):
            # At its home there may be more room.
            raise TooLarge(misfit) if request.guest else InvalidInput(misfit)
        super().add(request)

    def waiting_since(self, moment: float) -> list[Stream]:
        """Those that run, too, here or with a peer: a client may go, or its time be over, while
        they do."""
        self._gauge()
        open_ = (*self._running.streams, *self._lent, *self)
        return sorted((each for each in open_ if each.arrived <= moment), key=_arrived)

    def drop_answered(self) -> None:
        super().drop_answered()
        for stream in [each for each in self._running.streams if each.answered]:
            self._running.leave(stream)

    def remove(self, request: Stream) -> bool:
        if request.runs:
            self._running.leave(request)
            return True
        if request in self._lent:  # The peer hears of it when it has its answer.
            self._lent.remove(request)
            return True
        return super().remove(request)

    def put_back(self, requests: Iterable[Stream]) -> None:
        requests = list(requests)
        self._lent.difference_update(requests)
        super().put_back(stream for stream in requests if not stream.is_over)

    def group_serves(self, blocks: int) -> None:
        self._running.start_over(blocks)
        unfit = [stream for stream in self if self._misfit(stream)]
        for stream in unfit:
            super().remove(stream)
            kind = TooLarge if stream.guest else RequestFailed
            stream.failure = kind(self._misfit(stream))
        self._outbox.put(unfit)

    def in_hand(self, flights: Flights) -> list[Stream]:
        """All that runs; its blocks are gone with the group."""
        return [stream for stream in self._running.start_over(0) if not stream.is_over]

    def guilty(self, flights: Flights, ended: GroupEnded) -> list[Stream]:
        in_flight = [s for s in flights.in_hand if isinstance(s, Stream) and not s.is_over]
        guilty = suspects.judge(in_flight, ended)
        self._suspects.update(stream for stream in in_flight if stream.is_suspect)
        return guilty

    def guest(
        self, inputs: Mapping[str, Array], said: Mapping[str, Any], answer: StreamAnswer
    ) -> Stream:
        return self._reader.resume(inputs, said, answer)

    def hear(self, request: Stream, text: str) -> None:
        if request not in self._lent:
            return
        tokens, found = travelling.tokens(text)
        request.found = found if request.found is None else request.found
        for token in tokens:
            if not request.is_over:
                self._observe(request, time.perf_counter())
                request.append(token)
        self._outbox.put([request])

    def stop(self) -> None:
        self._outbox.stop()

    def _misfit(self, stream: Stream) -> str:
        """Why the cache, if its size is known, can never hold the stream."""
        blocks, explicit = self._running.pool.blocks, stream.settings.max_tokens is not None
        needed = blocks_for(stream.most if explicit else stream.length + 1)
        if not blocks or needed <= blocks:
            return ""
        tokens = f"{stream.prompt} tokens of prompt and {stream.most - stream.prompt} to generate"
        return f"{tokens} need {needed} blocks of {BLOCK} in the KV cache, which has {blocks}"

    # -- steps -----------------------------------------------------------------------------------

    def next_batch(self, flights: Flights) -> GenerationStep | None:
        self.drop_answered()
        self._suspects = {each for each in self._suspects if each.is_suspect}
        allowed = suspects.group(self._suspects) if self._suspects else None
        if allowed is not None and not flights.idle:
            return None
        chunks = self._cut(allowed)
        if not chunks and allowed and self._running.streams:
            self._begin_again()  # Those that may not go on have the blocks that these need.
            chunks = self._cut(allowed)
        if not chunks:
            return None
        streams = tuple(chunk.stream for chunk in chunks)
        begun = tuple(stream for stream in streams if stream.found is None)
        for stream, chunk in zip(streams, chunks, strict=True):
            if stream.found is None:
                stream.found = chunk.start
        self._count_begun(begun)
        return GenerationStep(
            *(
                next(self._numbers),
                streams,
                tuple(chunks),
                self._epoch,
                self._reader.vocabulary,
                begun,
            )
        )

    def _cut(self, allowed: Collection[Stream] | None) -> list[Chunk]:
        bound = self.bounds.max_batch_tokens
        return self._running.cut(bound, lambda s: allowed is None or s in allowed)

    def lost(self, batch: Batch) -> None:
        self._begin_again()

    def book(self, flight: Flight) -> None:
        step = flight.batch
        assert isinstance(step, GenerationStep)
        if step.epoch != self._epoch:
            return  # It is computed again.
        self._running.landed(step.streams)
        if flight.refusal or flight.outputs is None:
            self._refuse(step, flight.refusal or Refusal("RequestFailed", "no outputs"))
            return
        now = time.perf_counter()
        streaming = sum(chunk.is_next for chunk in step.chunks)
        self._running.pace.learn(streaming, step.tokens - streaming, now - flight.dispatched)
        sampled = [chunk for chunk in step.chunks if chunk.sampled]
        for (stream, _, stop, _), token in zip(sampled, _tokens(flight.outputs), strict=True):
            if not stream.runs or stop != stream.length:  # It was given up, or has begun again.
                continue
            if token.id == NO_NUMBERS:
                stream.failure = RequestFailed(_NO_NUMBERS)
            else:
                self._observe(stream, now)
                stream.append(token)
            if stream.is_over:
                self._running.leave(stream)
                step.through.append(stream)

    def answer(self, flight: Flight) -> None:
        step = flight.batch
        assert isinstance(step, GenerationStep)
        self._outbox.put(step.sampled)

    def _refuse(self, step: GenerationStep, refusal: Refusal) -> None:
        """Of the step's streams those that the ranks have named are refused, or else it is found
        by halves."""
        named = {step.streams[at] for at in refusal.sequences}
        if len(step.streams) == 1:
            named = set(step.streams)
        kind = InvalidInput if refusal.error == InvalidInput.__name__ else RequestFailed
        for stream in named:
            stream.failure = kind(refusal.text)
        self._begin_again()
        if not named:
            for stream in step.streams:
                stream.company = (len(step.streams) + 1) // 2
            self._suspects.update(step.streams)
        self._outbox.put(named)

    def _begin_again(self) -> None:
        """What a step has not written, others may have been told to read."""
        self._epoch += 1
        self.put_back(self._running.start_over(self._running.pool.blocks))

    def _observe(self, stream: Stream, now: float) -> None:
        if stream.generated:
            self._metrics.observe("between_tokens_seconds", now - stream.last_token)
        else:
            self._metrics.observe("first_token_seconds", now - stream.arrived)

    def _gauge(self) -> None:
        pool = self._running.pool
        self._metrics.gauge("running_sequences", len(self._running.streams))
        self._metrics.gauge("kv_blocks", pool.blocks)
        self._metrics.gauge("kv_blocks_used", pool.blocks - pool.free)
        self._metrics.gauge("kv_blocks_cached", pool.cached)

    def _count_preemption(self) -> None:
        self._metrics.count("preemptions_total")

    def _count_begun(self, begun: Sequence[Stream]) -> None:
        self._metrics.count("prompt_tokens_total", sum(stream.prompt for stream in begun))
        found = sum(stream.found or 0 for stream in begun)
        self._metrics.count("prompt_tokens_cached_total", found)


def _arrived(stream: Stream) -> float:
    return stream.arrived


def _tokens(outputs: Outputs) -> list[Token]:
    """Of each sampled sequence."""
    ids = outputs["NEXT_IDS"].tolist()
    if "LOGPROBS" not in outputs:
        return [Token(each) for each in ids]
    chosen = outputs["LOGPROBS"].tolist()
    # The slot that these are views of is written over.
    tops, top_logprobs = outputs["TOP_IDS"].copy(), outputs["TOP_LOGPROBS"].copy()
    return [Token(*each) for each in zip(ids, chosen, tops, top_logprobs, strict=True)]
