"""One generation of a replica's ranks: they start, serve and end as one.

    STARTING --every rank READY--> SERVING --a rank dies, raises or stops answering--> ENDED

The group is the unit of failure. A rank that is gone leaves its peers waiting inside a collective,
so none of them is worth keeping: `kill` ends all. A new generation has new processes, sockets and
memory; whatever the old one still says has no way to arrive.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from enum import Enum, auto
from pathlib import Path
from threading import Event
from typing import Any

from ..model.batch import Batch
from ..model.config import ModelConfig
from ..model.errors import describe
from ..model.layout import RankPlacement, ReplicaLayout, replicas
from ..model.rank_spec import RankSpec
from ..wire.arena import Arena
from ..wire.message import Kind, Message, Refusal
from ..wire.sockets import Connection
from .bounds import half, slots
from .flights import Flight, Flights, Step
from .inbox import GroupEnded, Inbox
from .place.cores import CpuSet, quota, threads
from .rendezvous import Rendezvous
from .supervise import scratch
from .supervise.forkserver_client import ForkserverClient
from .supervise.other_hosts import Hosts, OtherRank
from .supervise.process import DIE_SECONDS, Rank, RankProcess, wait_all
from .supervise.stacks import Stacks

_ABORT = b"\1\0\0\0"
"""Into the first bytes of the collectives' region: every wait there ends."""
_STOP_SECONDS = 5.0


class State(Enum):
    STARTING = auto()
    SERVING = auto()
    ENDED = auto()


class Group:
    """Made and ended by the supervisor's thread; `forward` may be called by any thread that holds
    the replica's lock."""

    def __init__(self, config: ModelConfig, generation: int) -> None:
        self.generation = generation
        self.state = State.STARTING
        sizes = config.parameters
        self._config = config
        self._answering = config.world_size - sizes.tensor_parallel_size
        self._slots = slots(config)
        self.flights = Flights(self._slots, set(range(sizes.tensor_parallel_size)), config.depth)
        self._parted = False
        self._rendezvous = Rendezvous()
        self.ranks: list[Rank] = []
        self.phases: dict[str, float] = {}
        """Seconds of the start."""
        self.blocks = 0
        """Of the KV cache: as many as the rank with the fewest has."""
        with ExitStack() as held:
            self._arena = Arena.create(self._slots, half(config))
            held.callback(self._arena.close)
            self._region = os.memfd_create("python_mp-collectives", os.MFD_CLOEXEC)
            held.callback(os.close, self._region)
            self._stacks = Stacks()
            held.callback(self._stacks.close)
            self.inbox = Inbox()
            held.callback(self.inbox.close)
            self._held = held.pop_all()

    # -- life ------------------------------------------------------------------------------------

    def spawn(
        self,
        forkserver: ForkserverClient,
        layout: ReplicaLayout,
        cpus: list[CpuSet],
        runtime: Path,
        hosts: Hosts | None = None,
    ) -> None:
        """Starts all ranks; `runtime` is a private folder, `hosts` are the others, which are given
        up with the group.

        Raises:
            OSError: the kernel or the disk has not what it takes.
            ForkserverLost: it is dead.
        """
        if hosts:
            self._held.callback(hosts.close)
        began = time.monotonic()
        folder = scratch.make(runtime, layout.index, self.generation)
        self._held.callback(scratch.remove, folder)
        for placement in layout.ranks:
            cores = () if placement.host else cpus[placement.rank]
            spec = self._spec(layout, placement, cores, folder, hosts)
            self._spawn(spec, forkserver, hosts)
        self.phases["spawn"] = time.monotonic() - began

    def wait_ready(
        self, deadline: float, stopping: Event, look: Callable[[], None], interval: float
    ) -> None:
        """Calls `look` every `interval` seconds.

        Raises:
            GroupEnded: a rank cannot load, the deadline is over, or `stopping` is set.
        """
        loading = {rank.rank for rank in self.ranks}
        while loading:
            if stopping.is_set():
                raise GroupEnded("stopped while it started")
            left = deadline - time.monotonic()
            if left <= 0:
                seconds = self._config.parameters.start_timeout_seconds
                raise GroupEnded(f"ranks {sorted(loading)} did not load within {seconds} s")
            look()
            for rank, message in self.inbox.wait(min(left, interval)):
                if message.kind is Kind.STORE:
                    self._rendezvous.hear(self.ranks[rank].connection, message.text)
                    continue
                loading.discard(rank)
                self._book(json.loads(message.text))
        self.state = State.SERVING

    def read_stacks(self) -> str:
        """What ranks have written there: on a crash by themselves, or when asked."""
        return self._stacks.read()

    def ask_for_stacks(self) -> None:
        """The group must be about to end."""
        self._stacks.ask(self.ranks)

    def refuse_batches(self) -> None:
        """From now on."""
        self.state = State.ENDED

    def stop(self) -> None:
        """The ranks exit by themselves; those that do not are killed."""
        self.refuse_batches()
        try:
            self._abort_collectives()
            self.inbox.shut()
            for rank in self.ranks:
                rank.close_connection()
            wait_all(self.ranks, _STOP_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """No rank outlives this, but one that hangs in the kernel."""
        self.refuse_batches()
        with self._held:
            self._abort_collectives()
            for rank in self.ranks:
                rank.kill()
            wait_all(self.ranks, DIE_SECONDS)
            self.inbox.shut()
            for rank in self.ranks:
                rank.reap(0.0, 0.0)
                rank.close_connection()

    def _abort_collectives(self) -> None:
        with suppress(OSError):  # Then they are killed in the middle of one.
            os.pwrite(self._region, _ABORT, 0)

    @property
    def alive(self) -> int:
        return len(self.ranks) if self.state is State.SERVING else 0

    # -- batches ---------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """It serves and can take a batch now."""
        return self.state is State.SERVING and not self._parted and self.flights.has_room

    def forward(self, batch: Batch) -> Flight:
        """Writes the batch into a free slot and tells every rank. Call only if `has_room`."""
        slot = self.flights.free_slot
        tensors = self._arena.write_inputs(slot, batch.pack(self._config))
        message = Message(Kind.FORWARD, slot, batch.id, tensors=tensors).encode()
        # Booked only now: an exception above leaves nothing half done.
        flight = Flight(batch, slot, time.perf_counter(), {rank.rank for rank in self.ranks})
        self.flights.add(flight)
        for rank in self.ranks:
            try:
                rank.connection.send(message)
            except (BrokenPipeError, ConnectionResetError):  # It died: the inbox sees that, too.
                break
            except OSError as error:  # It lives, without the batch for which the others would wait.
                why = f"rank {rank.rank} cannot be told of a batch: {describe(error)}"
                self.inbox.give_up(GroupEnded(why, killed=True, own=True))
                break
        return flight

    def note(self, rank: int, message: Message) -> Flight | None:
        """Books a rank's word on a batch; the flight, once every rank is through with it.

        Not as soon as the outputs are there: where a rank has missed a collective, its peers may
        have come to an end with each other's data, and it never does.
        """
        flight = self.flights.of_batch(message.batch)
        flight.waiting_for.discard(rank)
        seconds = message.compute_ns / 1e9, message.waited_ns / 1e9
        flight.steps.append(Step(rank, *seconds, message.padded, self.ranks[rank].host))
        if message.kind is Kind.REFUSED:
            flight.refusal = Refusal.decode(message.text)
            flight.refused_by.add(rank)
        elif rank == self._answering and message.text:
            flight.refusal = Refusal("InvalidInput", message.text)
        elif rank == self._answering:
            flight.outputs = self._arena.read_outputs(flight.slot, message.tensors)
        if self._parted or not flight.landed:
            return None
        if flight.refusal and len(flight.refused_by) in range(1, len(self.ranks)):
            self._part(min(flight.refused_by), flight.refusal.text)
        elif flight.outputs is not None and (fault := flight.batch.fault(flight.outputs)):
            self._part(self._answering, fault)
        return None if self._parted else flight

    def _part(self, rank: int, why: str) -> None:
        """Ranks that disagree are no group any more: what the others have computed is not to be
        trusted, and their next collective would not be the same one. Nor are those that answer what
        cannot be."""
        self._parted = True
        self.inbox.lose(rank, why)

    def release(self, flight: Flight) -> None:
        """The front is through with the flight's outputs."""
        flight.held = False

    def _spawn(self, spec: RankSpec, forkserver: ForkserverClient, hosts: Hosts | None) -> None:
        ours, theirs = Connection.pair()
        self._held.callback(ours.close)
        with closing(theirs):
            control, arena = theirs.fileno(), self._arena.fd
            process: Rank
            if hosts and spec.host:
                process = OtherRank(hosts, spec, ours, [control, arena, self._stacks.fd])
            else:
                descriptors = [control, arena, self._region, self._stacks.fd]
                process = RankProcess(forkserver, spec, ours, descriptors)
        self._held.callback(process.close)
        self.ranks.append(process)
        self.inbox.add(process)

    def _spec(
        self,
        layout: ReplicaLayout,
        placement: RankPlacement,
        cpus: CpuSet,
        folder: Path,
        hosts: Hosts | None,
    ) -> RankSpec:
        return RankSpec(
            source=self._config.source,
            replica=layout.index,
            generation=self.generation,
            rank=placement.rank,
            tensor_rank=placement.tensor_rank,
            stage=placement.stage,
            world_size=len(layout.ranks),
            device=placement.instance.device,
            cpus=cpus,
            threads=self._config.parameters.threads_per_rank
            or threads(cpus, len(replicas(self._config)) * len(layout.here), quota()),
            slots=self._slots,
            half=self._arena.half,
            scratch=str(folder),
            host=placement.host,
            address=hosts.address(placement.host) if hosts else "",
        )

    def _book(self, said: dict[str, Any]) -> None:
        """The least blocks of a rank, since each block is on all of them; of each phase the slowest
        rank's: they wait for each other."""
        blocks = int(said.pop("blocks", 0))
        self.blocks = min(blocks, self.blocks) if self.blocks else blocks
        for phase, seconds in said.items():
            self.phases[phase] = max(seconds, self.phases.get(phase, 0.0))
