"""Sends streams' parts, in a thread of its own, so that no step waits for a client.

A stream stands in the queue once, however many tokens it has. Where sending is slower than
generating, parts become larger by themselves; where it is not, each is one token.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

from ...machine.thread import Thread
from ...model.errors import InvalidInput, PythonMpError, RequestFailed
from ..metrics import Metrics
from ..refusing import Refusals
from .stream import Stream

log = logging.getLogger(__name__)

_IDLE_SECONDS = 1.0


class Outbox:
    """
    Args:
        give_up: takes out and refuses a stream.
    """

    def __init__(
        self,
        refusals: Refusals,
        give_up: Callable[[Stream, PythonMpError], None],
        metrics: Metrics,
    ) -> None:
        self._refusals = refusals
        self._give_up = give_up
        self._metrics = metrics
        self._queue: deque[Stream] = deque()
        self._queued: set[Stream] = set()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, streams: Iterable[Stream]) -> None:
        """They may have something for their clients."""
        with self._changed:
            new = [stream for stream in streams if stream not in self._queued]
            self._queue += new
            self._queued.update(new)
            self._changed.notify()

    def stop(self) -> None:
        """Sends what is there first."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        if self._thread.ident:
            self._thread.join()

    def _run(self) -> None:
        net = self._metrics.net
        net.loop("outbox", self._turn, self._stopping)
        while self._queue:
            net.hold("outbox", self._turn)

    def _turn(self) -> None:
        with self._changed:
            if not self._queue and not self._stopping.is_set():
                self._changed.wait(_IDLE_SECONDS)
            if not self._queue:
                return
            stream = self._queue.popleft()
            self._queued.discard(stream)  # What comes from now on is for another turn.
        if stream.failure:
            is_invalid = isinstance(stream.failure, InvalidInput)
            self._refusals.refuse([stream], stream.failure, "invalid" if is_invalid else None)
        elif not stream.answered:
            self._try_to_send(stream)

    def _try_to_send(self, stream: Stream) -> None:
        """A part that cannot be sent is missing, so nothing may follow it: wherever the stream is
        now, it is over, and refused in its next turn here."""
        try:
            self._send(stream)
        except Exception:
            log.exception("a part could not be sent")
            stream.failure = RequestFailed("a part of the answer could not be sent")
            self.put([stream])
            self._give_up(stream, stream.failure)

    def _send(self, stream: Stream) -> None:
        part = stream.take()
        if part is None:
            return
        outputs, is_last = part
        self._metrics.count("parts_total")
        self._metrics.count("generated_tokens_total", outputs["OUTPUT_IDS"].size)
        if is_last:
            stream.deliver(stream.answer.send, outputs)
        else:
            stream.answer.part(outputs)
