"""A replica: its queue, its present group of ranks, and what becomes of requests when one dies.

    submit (Triton's thread) --> Scheduler --> Group.forward --> ranks
    keeper's thread          <-- answers   <-- Inbox.wait    <--

A request is answered, refused, or still in hand; it is never lost. When a group ends, what it had
in hand is computed by a peer replica, or goes back to the head of the queue for the next
generation: inference is a pure function of its inputs, and no byte of an answer has left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..batch import Batch, Request
from ..config import ModelConfig
from ..errors import (
    Cancelled,
    InvalidInput,
    PythonMpError,
    RequestFailed,
    TimedOut,
    Unavailable,
)
from ..layout import ReplicaLayout
from . import bounds
from .blame import CRASH, Condemned, guilty
from .cores import CpuSet
from .group import Flight, Group
from .inbox import GroupEnded, Messages
from .keeper import Keeper
from .metrics import Metrics
from .parts import cut
from .peers import Peers
from .scheduler import Scheduler
from .status import Status
from .sweeper import GONE, Sweeper

log = logging.getLogger(__name__)

_QUICK_SECONDS = 5e-3


class Replica:
    """The front of one active instance.

    Args:
        cpus: the cores of each rank.
        runtime: a private folder.
        server: pid of the tritonserver with which all this ends; 0 for none.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: ReplicaLayout,
        cpus: list[CpuSet],
        runtime: Path,
        metrics: Metrics,
        server: int = 0,
    ) -> None:
        bounds.admit(config)
        self._config = config
        self._metrics = metrics
        self._scheduler = Scheduler(config.parameters)
        self._condemned = Condemned()
        self._lock = threading.Lock()
        self._group: Group | None = None
        self._batches = 0
        self._last_forward_seconds = 0.0
        self._down = "it is still being loaded"
        status = Status(runtime, config, layout.index, metrics.net)
        self._keeper = Keeper(config, layout, cpus, runtime, status, metrics, server, self)
        self._peers = Peers(config, layout.index, runtime, status, self.submit, self._take_back)
        self._sweeper = Sweeper(self._waiting_since, self._give_up, metrics.net)

    @property
    def serves(self) -> bool:
        return self._group is not None

    def start(self) -> None:
        """Returns when the ranks serve. Raises LoadError with the first rank's reason."""
        try:
            self._keeper.start()
        except PythonMpError:
            self._peers.close()
            raise
        self._sweeper.start()

    def stop(self) -> None:
        """Ends the ranks. Triton calls this when no request is left; one that is, is refused."""
        self._peers.close()
        self._keeper.stop()
        self._sweeper.stop()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues the requests, or has a peer compute them while there is no group. Each is answered
        later, from another thread."""
        requests = self._cut(requests)
        if self._group is None:
            requests = self._hand_over(requests)
        with self._lock:
            refused = [(request, why) for request in requests if (why := self._admit(request))]
            self._dispatch()
            if len(self._scheduler):
                self._sweeper.wake()
        for request, (error, reason) in refused:
            self._refuse([request], error, reason)

    def submit_and_attend(
        self, requests: Sequence[Request], is_done: Callable[[], bool], seconds: float
    ) -> None:
        """As `submit`; then, if batches take the ranks only milliseconds, does the work of the
        keeper's thread here until `is_done()` or the time is up. An answer that comes at once is
        spared the way through another thread."""
        with self._lock:
            group = self._group
        if group is None or self._last_forward_seconds > _QUICK_SECONDS:
            self.submit(requests)
            return
        deadline = time.perf_counter() + seconds
        with group.inbox.attended() as attended:
            self.submit(requests)
            while attended and not is_done() and (left := deadline - time.perf_counter()) > 0:
                messages = group.inbox.poll(left)
                if messages is None:
                    return
                self.handle(group, messages)

    # -- the keeper's Desk -----------------------------------------------------------------------

    def open(self, group: Group) -> None:
        with self._lock:
            self._group, self._down = group, ""
            self._dispatch()

    def handle(self, group: Group, messages: Messages) -> None:
        """Books what the ranks say, gives them the next batch, then answers."""
        with self._lock:
            flights = [flight for m in messages if (flight := group.note(*m))]
            self._dispatch()
        try:
            for flight in flights:
                try:
                    self._answer(flight)
                except Exception:
                    log.exception("batch %d could not be answered", flight.batch.id)
                    self._fail(flight.batch.requests, RequestFailed("the answer could not be read"))
        finally:
            with self._lock:
                for flight in flights:
                    group.release(flight)
                for flight in group.sweep():
                    self._metrics.landed(flight)
                self._dispatch()

    def close(self, group: Group, ended: GroupEnded | None) -> None:
        with self._lock:
            self._group = None
            group.close_door()
            in_hand = group.in_hand
        if ended is None:
            self._refuse(in_hand, Unavailable(f"{self._config.name} was stopped"), "down")
            return
        for request in guilty(in_hand, ended):
            self._condemned.add(request)
            self._refuse([request], RequestFailed(ended.raised or str(ended)), "condemned")
        self._refuse([r for r in in_hand if r.is_cancelled()], Cancelled(GONE), "cancelled")
        replayed = [request for request in in_hand if not request.answered]
        self._metrics.count("replays_total", len(replayed))
        with self._lock:
            self._scheduler.put_back(replayed)
            waiting = self._scheduler.take_all()
        self._take_back(self._hand_over(waiting))

    def shut(self, reason: str) -> None:
        with self._lock:
            self._down = reason
            waiting = self._scheduler.take_all()
        self._refuse(self._hand_over(waiting), Unavailable(reason), "down")

    # -- requests --------------------------------------------------------------------------------

    def _cut(self, requests: Sequence[Request]) -> list[Request]:
        """What is larger than a batch in parts; refuses what cannot be cut."""
        parts: list[Request] = []
        for request in requests:
            try:
                parts += cut(request, self._config)
            except InvalidInput as error:
                self._refuse([request], error, "invalid")
        return parts

    def _admit(self, request: Request) -> tuple[PythonMpError, str] | None:
        """Queues it, or says why not; with the lock held."""
        if request in self._condemned:
            return RequestFailed("this request has ended two groups of ranks"), "condemned"
        if self._down:
            return Unavailable(self._down), "down"
        try:
            self._scheduler.add(request)
        except Unavailable as error:
            return error, "queue_full"
        except InvalidInput as error:
            return error, "invalid"
        return None

    def _dispatch(self) -> None:
        """Gives the group batches while it has room, with the lock held. A suspect flies alone."""
        group = self._group
        while group and group.has_room and self._scheduler.head:
            if not group.idle and (self._scheduler.next_is_suspect or group.holds_suspect):
                break
            self._batches += 1
            batch = Batch(self._batches, tuple(self._scheduler.next_batch()))
            try:
                flight = group.forward(batch)
            except Exception:  # Those behind it may have better luck.
                log.exception("batch %d could not be given to the ranks", batch.id)
                self._fail(batch.requests, RequestFailed("the request could not be computed"))
                continue
            self._metrics.dispatched(flight, len(self._scheduler))

    def _answer(self, flight: Flight) -> None:
        requests = flight.batch.requests
        self._last_forward_seconds = flight.steps[-1].compute
        if flight.refused or flight.outputs is None:
            self._invalid(requests, flight.refused)
            return
        try:
            answers = flight.batch.split(flight.outputs, self._config.outputs)
        except RequestFailed as error:
            self._fail(requests, error)
            return
        for request, outputs in zip(requests, answers, strict=True):
            request.deliver(request.send, outputs)

    def _invalid(self, requests: tuple[Request, ...], text: str) -> None:
        """In company nobody knows whose input it was, so each is asked again alone."""
        if len(requests) == 1:
            self._refuse(requests, InvalidInput(text), "invalid")
            return
        for request in requests:
            request.alone = True
        with self._lock:
            self._scheduler.put_back(requests)

    def _hand_over(self, requests: Sequence[Request]) -> list[Request]:
        """To a peer; those that it does not get are returned. What may have ended a group stays at
        home, for it would end the peer's as well."""
        kept = [request for request in requests if request.guest or request.suspicion >= CRASH]
        away = [r for r in requests if not r.guest and r.suspicion < CRASH]
        left = self._peers.hand_over(away)
        self._metrics.count("handed_over_total", len(away) - len(left))
        return [*kept, *left]

    def _take_back(self, requests: list[Request]) -> None:
        """To the head of the queue, for the next generation."""
        with self._lock:
            down = self._down
            if not down:
                self._scheduler.put_back(requests)
                self._dispatch()
        if down:
            self._refuse(requests, Unavailable(down), "down")

    def _waiting_since(self, moment: float) -> list[Request]:
        with self._lock:
            self._metrics.gauge("queue_requests", len(self._scheduler))
            self._metrics.gauge("queue_bytes", self._scheduler.nbytes)
            return self._scheduler.waiting_since(moment)

    def _give_up(self, request: Request, error: TimedOut | Cancelled) -> None:
        with self._lock:
            waited = self._scheduler.remove(request)
        if waited:
            reason = "cancelled" if isinstance(error, Cancelled) else "timeout"
            self._refuse([request], error, reason)

    def _refuse(self, requests: Sequence[Request], error: PythonMpError, reason: str) -> None:
        # Parts of one request fail together, and count once.
        refused = sum(self._fail([request], error) for request in requests)
        self._metrics.count("refused_total", refused, reason=reason)

    @staticmethod
    def _fail(requests: Iterable[Request], error: PythonMpError) -> int:
        """How many of them had no answer yet."""
        waited = 0
        for request in requests:
            waited += not request.answered
            request.deliver(request.answer.fail, error)
        return waited
