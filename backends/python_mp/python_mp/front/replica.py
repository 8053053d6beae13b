"""A replica: its queue, its present group of ranks, and what becomes of requests when one dies.

    submit (Triton's thread) --> Schedule.next_batch --> Group.forward --> ranks
    supervisor's thread      <-- Schedule.answer     <-- Inbox.wait    <--

A request is answered, refused, or still in hand; it is never lost. When a group ends, what it had
in hand goes back to its place in the queue, for a peer replica or the next generation: inference is
a pure function of its inputs, and no byte of an answer has left.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ..model.config import ModelConfig
from ..model.errors import (
    Cancelled,
    InvalidInput,
    PythonMpError,
    RequestFailed,
    Unavailable,
)
from ..model.layout import ReplicaLayout
from ..model.request import Request
from . import bounds
from .attendance import attend
from .group import Group
from .inbox import GroupEnded, Messages
from .metrics import Metrics
from .open_requests import OpenRequests
from .outage import Outage
from .peers.away import Away, may_go
from .peers.guests import Guests
from .place.cores import CpuSet
from .refusing import Refusals
from .schedule.choice import schedule
from .schedule.expiry import GONE, Expiry
from .status import Status
from .succession import Succession
from .supervise.poison import PoisonList
from .supervise.supervisor import Supervisor

log = logging.getLogger(__name__)


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
        self._poison = PoisonList()
        self._refusals = Refusals(metrics, self._poison)
        self._schedule = schedule(config, self._refusals, metrics, self._put_back, self._give_up)
        self._lock = threading.Lock()
        parts = self._schedule, self._lock, self._refusals, self._poison, metrics
        self._open = OpenRequests(*parts)
        self._group: Group | None = None
        self._status = status = Status(runtime, config, layout.index, metrics.net)
        self._supervisor = Supervisor(config, layout, cpus, runtime, status, metrics, server, self)
        self._away = Away(self, status, runtime, metrics.net)
        self._outage = Outage(*parts[:3], lambda: self._away.is_hopeful)
        self._guests = Guests(
            *(layout.index, runtime, self._schedule.guest, self.submit, self, metrics.net)
        )
        ways = self._open, self._away, self._supervisor
        self._succession = Succession(config, status, self._schedule, *ways, metrics.net)
        self._expiry = Expiry(self._open.since, self._open.give_up, metrics.net)

    @property
    def serves(self) -> bool:
        return self._group is not None

    def start(self) -> None:
        """Returns when the ranks serve. Raises LoadError with the first rank's reason."""
        try:
            self._schedule.start()
            self._supervisor.start()
            self._expiry.start()
            self._away.start()
            self._succession.start()
        except Exception:  # Also of the kernel, which may have no thread to give.
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the ranks. Triton calls this when no request is left; one that is, is refused."""
        self._succession.stop()
        self._guests.stop()
        self._away.stop()
        self._supervisor.stop()
        self.gave_up(f"{self._config.name} is being unloaded")  # What came back from peers.
        self._expiry.stop()
        self._schedule.stop()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues the requests. Each is answered later, from another thread."""
        try:
            self._submit(requests)
        except Exception:
            log.exception("requests could not be queued")
            self._refusals.fail(requests, RequestFailed("the request could not be queued"))

    def _submit(self, requests: Sequence[Request]) -> None:
        requests = self._open.prepare(requests)
        with self._lock:
            refused = [(r, why) for r in requests if (why := self._admit(r))]
            self._dispatch()
            self._see_to_the_rest()
        for request, (error, reason) in refused:
            self._refusals.refuse([request], error, reason)

    def submit_and_attend(
        self, requests: Sequence[Request], is_done: Callable[[], bool], seconds: float
    ) -> None:
        """As `submit`; then, if the schedule is quick, does the work of the supervisor's thread
        here until `is_done()` or the time is up. An answer that comes at once is spared the way
        through another thread."""
        group = self._group if self._schedule.is_quick else None
        attend(group, lambda: self.submit(requests), self.handle, is_done, seconds)

    # -- the supervisor's Owner ------------------------------------------------------------------

    def group_serves(self, group: Group) -> None:
        if group.generation == 1:
            self._away.spread()
        with self._lock:
            self._group = group
            self._outage.end()
            self._schedule.group_serves(group.blocks)
            self._dispatch()

    def handle(self, group: Group, messages: Messages) -> None:
        """Books what the ranks say, gives them the next batch, then answers."""
        with self._lock:
            flights = [flight for m in messages if (flight := group.note(*m))]
            for flight in flights:
                self._schedule.book(flight)
            if not any(flight.refusal for flight in flights):  # What is left of those goes first.
                self._dispatch()
        try:
            for flight in flights:
                try:
                    self._schedule.answer(flight)
                except Exception:
                    log.exception("batch %d could not be answered", flight.batch.id)
                    self._refusals.fail(
                        flight.batch.requests, RequestFailed("the answer could not be read")
                    )
        finally:
            with self._lock:
                for flight in flights:
                    group.release(flight)
                for flight in group.flights.take_landed():
                    self._metrics.landed(flight)
                self._dispatch()

    def group_ended(self, group: Group, ended: GroupEnded | None) -> None:
        with self._lock:
            self._group = None
            group.refuse_batches()
            in_hand = self._schedule.in_hand(group.flights)
        self._away.wake()  # To know who may help, before anybody asks.
        if ended is None and self._status.leaves:
            self.take_back(in_hand)
            return
        if ended is None:
            self._refusals.refuse(in_hand, Unavailable(f"{self._config.name} was stopped"), "down")
            return
        try:
            self._judge(group, in_hand, ended)
        finally:
            replayed = [request for request in in_hand if not request.answered]
            self._metrics.count("replays_total", len(replayed))
            self.take_back(replayed)

    def gave_up(self, reason: str) -> None:
        if self._status.leaves:
            reason = f"a newer version of {self._config.name} has taken its place; ask again"
        self._away.wake()
        self._outage.begin(reason)

    # -- Away's Home -----------------------------------------------------------------------------

    @property
    def needs_help(self) -> bool:
        return self._group is None or self._status.leaves

    def lend(self) -> Request | None:
        with self._lock:
            return self._schedule.lend(may_go) if self._group is None else None

    def hear_part(self, request: Request, text: str) -> None:
        with self._lock:
            self._schedule.hear(request, text)

    def settle(self, request: Request) -> None:
        with self._lock:
            self._schedule.settle(request)
        self._metrics.count("handed_over_total")

    def take_back(self, requests: list[Request]) -> None:
        """To their places in the queue, for the next generation or another peer."""
        try:
            self._refusals.refuse_poison(requests)
        finally:
            with self._lock:
                self._schedule.put_back(requests)
                self._dispatch()
                self._see_to_the_rest()
            self._outage.refuse_stranded()

    def stand_alone(self) -> None:
        self._outage.refuse_stranded()

    def poison_list(self) -> str:
        return self._poison.tell()

    def hear(self, told: str) -> None:
        self._poison.hear(told)
        self._open.refuse_poison()

    # -- requests --------------------------------------------------------------------------------

    def _admit(self, request: Request) -> tuple[PythonMpError, str] | None:
        """Queues it, or says why not; with the lock held."""
        if self._group is None and request.guest:
            return Unavailable("its ranks are being restarted"), "down"
        if refusal := self._outage.refusal(request):
            return refusal, "down"
        try:
            self._schedule.add(request)
        except Unavailable as error:
            return error, "queue_full"
        except InvalidInput as error:
            return error, "invalid"
        return None

    def _dispatch(self) -> None:
        """Gives the group batches while it has room, with the lock held."""
        group = self._group
        while group and group.has_room and (batch := self._schedule.next_batch(group.flights)):
            try:
                flight = group.forward(batch)
            except Exception:  # Those behind it may have better luck.
                log.exception("batch %d could not be given to the ranks", batch.id)
                self._schedule.lost(batch)
                self._refusals.fail(
                    batch.requests, RequestFailed("the request could not be computed")
                )
                continue
            self._metrics.dispatched(flight, len(self._schedule))

    def _put_back(self, requests: list[Request]) -> None:
        with self._lock:
            self._schedule.put_back(requests)
            self._see_to_the_rest()
        self._outage.refuse_stranded()

    def _give_up(self, request: Request, error: PythonMpError) -> None:
        self._open.give_up(request, error)

    def _judge(self, group: Group, in_hand: list[Request], ended: GroupEnded) -> None:
        poison = self._schedule.guilty(group.flights, ended)
        for request in poison:
            self._poison.add(request)
        if poison:
            self._away.spread()
            self._refusals.refuse(poison, RequestFailed(ended.raised or str(ended)))
            self._open.refuse_poison()
        self._refusals.refuse([r for r in in_hand if r.is_cancelled()], Cancelled(GONE))

    def _see_to_the_rest(self) -> None:
        """What waits may go to a peer, or wait too long."""
        if self._schedule.has_open:
            self._expiry.wake()
            if self._group is None:
                self._away.wake()
