"""A replica whose ranks and peers come and go, without either: whatever becomes of them, a stream
is computed, is where somebody may compute it, or is refused; and its client's time-out holds.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from python_mp.front.flights import Flight, Flights
from python_mp.front.inbox import GroupEnded
from python_mp.front.metrics import Metrics
from python_mp.front.peers.away import may_go
from python_mp.front.replica import Replica
from python_mp.front.schedule import travelling
from python_mp.front.schedule.reading import StreamReader
from python_mp.front.schedule.stream import Stream
from python_mp.model import layout
from python_mp.model.batch import Batch
from python_mp.wire.message import Message
from tests.support.configs import decoder_config
from tests.support.streams import Parts

ENDS = {
    "killed": GroupEnded("rank 0 was killed by SIGKILL", killed=True),
    "crashed": GroupEnded("rank 0 was killed by SIGSEGV"),
    "raised": GroupEnded("rank 0 raised", raised="raised as asked"),
}
EVENTS = st.sampled_from(
    [
        *[("ask", most) for most in (1, 40, 40, None)],
        *[("guest", 40), ("serve",), ("serve",), ("land",), ("land",), ("give up",)],
        *[("lend",)] * 4,
        *[("die", how) for how in ENDS],
        *[("hope", True), ("hope", True), ("hope", False)],
        *[("back", 0, 0.0), ("back", 0, 1.0), ("back", 1, 0.0)],
        *[(event, n) for n in range(3) for event in ("part", "settle", "late", "gone")],
        ("hand over",),
    ]
)


class Ranks:
    """As a Group. Their next ids are of no interest."""

    generation, blocks, has_room = 2, 64, True
    release = refuse_batches = Mock()

    def __init__(self) -> None:
        self.flights = Flights(100, {0})

    def forward(self, batch: Batch) -> Flight:
        self.flights.add(flight := Flight(batch, 0, time.perf_counter(), {0}))
        self.has_room = False
        return flight

    def note(self, rank: int, message: Message) -> Flight:
        flight = self.flights.oldest
        assert flight
        flight.waiting_for.clear()
        flight.held, self.has_room = False, True
        flight.outputs = {"NEXT_IDS": np.full(len(flight.batch.sampled), 9, np.int32)}  # type: ignore[attr-defined]
        return flight


class World:
    def __init__(self, folder: Path) -> None:
        config = decoder_config(folder, kv_cache_blocks=64)
        self.reader = StreamReader(config)
        self.replica = Replica(
            config, layout.replicas(config)[0], [()], folder, Metrics(Mock(), {})
        )
        self.schedule = self.replica._schedule
        self.schedule.start()
        self.ranks: Any = None
        self.over = False
        self.asked: list[Stream] = []
        self.lent: list[Stream] = []
        self.peers = SimpleNamespace(
            is_hopeful=False, wake=Mock(), spread=Mock(), stop=self.lose_peers
        )
        self.replica._away = self.peers  # type: ignore[assignment]
        self.replica._supervisor = SimpleNamespace(stop=self.stop_ranks)  # type: ignore[assignment]

    def ask(self, most: int | None, *, guest: bool = False) -> None:
        inputs = {"INPUT_IDS": np.arange(8, 20, dtype=np.int32)[None]}
        parameters = {"ignore_eos": True} | ({"max_tokens": most} if most else {})
        stream = self.reader.read(inputs, parameters, Parts())
        stream.guest = guest
        self.asked.append(stream)
        self.replica.submit([stream])

    def do(self, event: str, *how: Any) -> None:
        open_ = [each for each in self.asked if not each.answered]
        match event:
            case "ask" | "guest":
                self.ask(how[0], guest=event == "guest")
            case "serve" if not (self.ranks or self.over):
                self.ranks = Ranks()
                self.replica.group_serves(self.ranks)
            case "land" if self.ranks and not self.ranks.flights.idle:
                self.replica.handle(self.ranks, [(0, Message(9))])  # type: ignore[arg-type]
            case "die" if self.ranks:
                self.end(ENDS[how[0]])
            case "give up" if not self.ranks:
                self.replica.gave_up("no start succeeds")
            case "hand over" if not self.over:
                self.replica._status.leaves = True
                self.stop_ranks()
            case "hope":
                self.peers.is_hopeful = how[0]
                if not (how[0] or self.ranks):
                    self.replica.stand_alone()
            case "lend" if self.peers.is_hopeful:
                if lent := self.replica.lend():
                    self.lent.append(lent)  # type: ignore[arg-type]
            case "back" if self.lent:
                self.come_back([self.lent.pop()], *how)
            case "part" if self.lent:
                self.replica.hear_part(self.lent[-1], travelling.part(_part(how[0])))
            case "settle" if self.lent and self.lent[-1].is_over:
                self.replica.settle(self.lent.pop())
            case "late" if open_:
                open_[how[0] % len(open_)].deadline = -1.0
                self.sweep(open_[how[0] % len(open_)])
            case "gone" if open_:
                open_[how[0] % len(open_)].answer.cancelled = True  # type: ignore[attr-defined]

    def end(self, ended: GroupEnded | None) -> None:
        if self.ranks:
            ranks, self.ranks = self.ranks, None
            self.replica.group_ended(ranks, ended)

    def stop_ranks(self) -> None:
        """For good; so once."""
        if not self.over:
            self.over = True
            self.end(None)
            self.replica.gave_up("it is being unloaded")

    def come_back(self, streams: list[Stream], strays: int = 1, suspicion: float = 0.0) -> None:
        for stream in streams:
            stream.strays += strays
            stream.suspicion += suspicion
        self.replica.take_back(list(streams))

    def lose_peers(self) -> None:
        """One after the other; as long as one is left there is hope."""
        lent, self.lent = self.lent, []
        self.come_back(lent)
        self.peers.is_hopeful = False

    def sweep(self, late: Stream) -> None:
        self.replica._expiry._sweep()
        assert late.is_over, "its client waits no longer"

    def check(self) -> None:
        waiting = list(self.schedule)  # type: ignore[call-overload]
        running = self.schedule._running.streams  # type: ignore[attr-defined]
        known = {*waiting, *running, *self.schedule._lent}  # type: ignore[attr-defined]
        for stream in self.asked:
            assert stream.is_over or stream in known, "it is lost"
        if self.replica._outage.reason:
            assert not running
            assert all(may_go(each) and self.peers.is_hopeful for each in waiting)


def _part(tokens: int) -> dict[str, Any]:
    return {"USAGE": np.zeros((1, 3), np.int32), "OUTPUT_IDS": np.full((1, tokens), 9, np.int32)}


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, min_size=20, max_size=60))
def test_nobody_waits_for_what_never_comes(events: list[Any]) -> None:
    with TemporaryDirectory() as folder:
        world = World(Path(folder))
        try:
            for event in (("serve",), ("ask", 40), ("ask", None), ("land",), *events):
                world.do(*event)
                world.check()
        finally:
            world.replica.stop()
        assert all(stream.answered for stream in world.asked)
        assert not world.schedule.has_open
