"""A replica: its queue, its present group of ranks, and what happens when the group dies.

    submit (Triton's thread) --> Scheduler --> Group.forward --> ranks
    replica's thread         <-- answers   <-- Inbox.wait    <--

A request is answered, refused, or still in hand; it is never lost. When a group ends, what it had
in hand goes back to the head of the queue and the next generation computes it: inference is a pure
function of its inputs, and no byte of an answer has left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from ..batch import Batch, Request
from ..config import ModelConfig
from ..errors import InvalidInput, LoadError, PythonMpError, RequestFailed, Unavailable
from ..layout import ReplicaLayout
from .blame import guilty
from .cores import CpuSet
from .group import Flight, Group, State
from .inbox import GroupEnded, Messages
from .metrics import Metrics
from .nursery import Nursery
from .scheduler import Scheduler

log = logging.getLogger(__name__)

_QUICK_SECONDS = 5e-3
_PATIENCE = 3
"""Failed starts in a row until requests are refused instead of kept waiting. A rank that says why
it cannot load gets no such patience; a start that was killed from outside does not count."""
_BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)


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
        self._config = config
        self._layout = layout
        self._cpus = cpus
        self._runtime = runtime
        self._metrics = metrics
        self._server = server
        sizes = config.parameters
        self._scheduler = Scheduler(
            sizes.max_batch_tokens, sizes.max_batch_bytes, sizes.max_queue_requests
        )
        self._lock = threading.Lock()
        self._group: Group | None = None
        self._batches = 0
        self._last_forward_seconds = 0.0
        self._failed_starts = 0
        self._down = ""
        self._stopping = threading.Event()
        self._first_start = threading.Event()
        # It makes the nursery, so the kernel kills that and all ranks when this thread ends.
        self._thread = threading.Thread(target=self._run, name=f"replica-{layout.index}")

    def start(self) -> None:
        """Returns when the ranks serve. Raises LoadError with the first rank's reason."""
        self._thread.start()
        self._first_start.wait()
        if self._down:
            self.stop()
            raise LoadError(self._down)

    def stop(self) -> None:
        """Ends the ranks. Triton calls this when no request is left; one that is, is refused."""
        self._stopping.set()
        with self._lock:
            if self._group:
                self._group.inbox.wake()
        self._thread.join()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues the requests; each is answered later, from the replica's thread."""
        refused: list[tuple[Request, PythonMpError]] = []
        with self._lock:
            for request in requests:
                try:
                    if self._down:
                        raise Unavailable(self._down)
                    self._scheduler.add(request)
                except PythonMpError as error:
                    refused.append((request, error))
            self._dispatch()
        for request, why in refused:
            self._fail([request], why)

    def submit_and_attend(
        self, requests: Sequence[Request], is_done: Callable[[], bool], seconds: float
    ) -> None:
        """As `submit`; then, if batches take the ranks only milliseconds, does the work of the
        replica's thread here until `is_done()` or the time is up. An answer that comes at once is
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
                self._handle(group, messages)

    # -- the replica's thread --------------------------------------------------------------------

    def _run(self) -> None:
        nursery = None
        for generation in count(1):
            group = Group(self._config, generation)
            try:
                if nursery is None or not nursery.is_alive:
                    nursery = Nursery(self._config.parameters.engine, self._server)
                self._start(group, nursery)
                while not self._stopping.is_set():
                    self._handle(group, group.inbox.wait(None))
                break
            except GroupEnded as ended:
                if self._ended(group, ended) or self._stopping.is_set():
                    break
            except Exception as bug:  # Nobody would start this thread again.
                log.exception("%s replica %d", self._config.name, self._layout.index)
                if self._ended(group, GroupEnded(f"internal error: {bug!r}")):
                    break
            finally:
                self._end(group)
        if nursery:
            nursery.close()
        with self._lock:
            self._down = self._down or f"{self._config.name} is being unloaded"
        self._refuse_waiting()

    def _start(self, group: Group, nursery: Nursery) -> None:
        began = time.monotonic()
        group.spawn(nursery, self._layout, self._cpus, self._runtime)
        with self._lock:
            self._group = group
        self._metrics.gauge("generation", group.generation)
        group.wait_ready(self._config.parameters.start_timeout_seconds, self._stopping)
        with self._lock:
            self._down, self._failed_starts = "", 0
            self._dispatch()
        self._metrics.gauge("ranks_alive", group.alive)
        log.info(
            "%s replica %d generation %d: %d ranks serve after %.1f s",
            self._config.name,
            self._layout.index,
            group.generation,
            group.alive,
            time.monotonic() - began,
        )
        self._first_start.set()

    def _handle(self, group: Group, messages: Messages) -> None:
        """Books what the ranks say, gives them the next batch, then answers."""
        with self._lock:
            flights = [flight for m in messages if (flight := group.note(*m))]
            self._dispatch()
        for flight in flights:
            self._answer(flight)
        with self._lock:
            for flight in flights:
                group.release(flight)
            for flight in group.sweep():
                self._metrics.landed(flight)
            self._dispatch()

    def _answer(self, flight: Flight) -> None:
        requests = flight.batch.requests
        self._last_forward_seconds = flight.steps[-1].compute
        if flight.outputs is None:
            self._refused(requests, flight.refused)
            return
        try:
            answers = flight.batch.split(flight.outputs, self._config.outputs)
        except RequestFailed as error:
            self._fail(requests, error)
            return
        for request, outputs in zip(requests, answers, strict=True):
            _deliver(request, request.answer.send, outputs)

    def _refused(self, requests: tuple[Request, ...], text: str) -> None:
        """Invalid input: in company nobody knows whose, so each is asked again alone."""
        if len(requests) == 1:
            self._fail(requests, InvalidInput(text))
            return
        for request in requests:
            request.alone = True
        with self._lock:
            self._scheduler.put_back(requests)

    def _ended(self, group: Group, ended: GroupEnded) -> bool:
        """Puts back what the group had in hand; whether to give up (it never served)."""
        reason = f"{self._config.name} replica {self._layout.index}: {ended}"
        if ended.raised:
            reason += f": {ended.raised}"
        log.error("%s (generation %d)", reason, group.generation)
        self._metrics.gauge("ranks_alive", 0)
        with self._lock:
            served = group.state is State.SERVING
            group.close_door()
            in_hand = group.in_hand
        if not served:
            self._failed_starts += not ended.killed
            if ended.raised or self._failed_starts >= _PATIENCE or not self._first_start.is_set():
                self._down = reason
            if not self._first_start.is_set():
                self._first_start.set()
                return True
            if self._down:
                self._refuse_waiting()
        refused = guilty(in_hand, ended)
        replayed = [request for request in in_hand if request not in refused]
        with self._lock:
            self._scheduler.put_back(replayed)
        self._fail(refused, RequestFailed(ended.raised or str(ended)))
        self._metrics.count("restarts_total")
        self._metrics.count("replays_total", len(replayed))
        self._stopping.wait(_BACKOFF_SECONDS[min(self._failed_starts, len(_BACKOFF_SECONDS) - 1)])
        return False

    def _end(self, group: Group) -> None:
        with self._lock:
            self._group = None
            group.close_door()
            left = group.in_hand if self._stopping.is_set() else []
        group.end(graceful=self._stopping.is_set())
        self._fail(left, Unavailable(f"{self._config.name} was stopped"))

    def _refuse_waiting(self) -> None:
        with self._lock:
            waiting = self._scheduler.take_all()
        self._fail(waiting, Unavailable(self._down))

    # -- with the lock held ----------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Gives the group batches while it has room. A suspect flies alone."""
        group = self._group
        while group and len(self._scheduler) and group.has_room:
            if not group.idle and (self._scheduler.next_is_suspect or group.holds_suspect):
                break
            self._batches += 1
            flight = group.forward(Batch(self._batches, tuple(self._scheduler.next_batch())))
            self._metrics.dispatched(flight, len(self._scheduler))

    @staticmethod
    def _fail(requests: Iterable[Request], error: PythonMpError) -> None:
        for request in requests:
            _deliver(request, request.answer.fail, error)


def _deliver(request: Request, send: Callable[[Any], None], what: Any) -> None:
    """Answers once; one client's trouble is not the others'."""
    if request.answered:
        return
    request.answered = True
    try:
        send(what)
    except Exception:
        log.exception("an answer could not be sent")
