"""The schedule Continuous and a rank, in one thread: each step is cut, computed and booked here."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np

from python_mp.front.flights import Flight, Flights
from python_mp.front.inbox import GroupEnded
from python_mp.front.metrics import Metrics
from python_mp.front.peers import away
from python_mp.front.refusing import Refusals
from python_mp.front.schedule import travelling
from python_mp.front.schedule.block_pool import BlockPool
from python_mp.front.schedule.continuous import Continuous
from python_mp.front.schedule.generation_step import GenerationStep
from python_mp.front.schedule.reading import StreamReader
from python_mp.front.schedule.stream import Stream
from python_mp.front.supervise.poison import PoisonList
from python_mp.model.errors import InvalidInput, PythonMpError, RequestFailed, TooLarge
from python_mp.rank.engines.echo_decoder import EchoDecoder
from python_mp.wire.message import Refusal
from tests.support.configs import decoder_config
from tests.support.replicas import lone_rank
from tests.support.streams import Parts


class Home:
    """The way back of a guest."""

    keeps = False

    def __init__(self, bench: Bench, stream: Stream) -> None:
        self._bench, self.stream = bench, stream
        bench.away[stream] = self

    @property
    def waits(self) -> bool:
        """Whether home has not taken the stream back since, and lent it again."""
        return self.stream in self._bench.schedule._lent and self._bench.away[self.stream] is self

    def part(self, outputs: Mapping[str, Any]) -> None:
        self._bench.heard.append((self, travelling.part(outputs)))

    def send(self, outputs: Mapping[str, Any]) -> None:
        self.part(outputs)
        self._bench.heard.append((self, ""))

    def fail(self, error: PythonMpError) -> None:
        assert not self.waits, error

    def is_cancelled(self) -> bool:
        return not self.waits


class Bench:
    """Up to `depth` steps are in flight. `step` cuts what may be cut and lands the oldest."""

    def __init__(self, folder: Path, *, depth: int = 1, blocks: int = 64, **more: Any) -> None:
        self.config = decoder_config(
            folder, kv_cache_blocks=blocks, pipeline_parallel_size=depth, **more
        )
        self._alone = lone_rank(decoder_config(folder, kv_cache_blocks=blocks, **more))
        self.reader = StreamReader(self.config)
        self.metrics = Metrics(Mock(), {})
        self.refusals = Refusals(self.metrics, PoisonList())
        self.schedule = Continuous(self.config, self.refusals, self._give_up, self.metrics)
        self.schedule.start()
        self.depth = depth
        self.steps: list[GenerationStep] = []
        self.deaths = 0
        self.heard: deque[tuple[Home, str]] = deque()
        self.away: dict[Stream, Home] = {}
        self.spoil: Callable[[dict[str, Any]], object] | None = None
        """What the next step's outputs suffer."""
        self.refuses = False
        """The next step is refused as a whole, by ranks that can name nobody."""
        self.faults: list[str] = []
        self._blocks = blocks
        self._hoard: tuple[BlockPool, list[int]] = (BlockPool(0), [])
        self._begin()

    def _begin(self) -> None:
        self.engine = EchoDecoder(self._alone)
        self.flights = Flights(self.depth + 1, {0})
        self.flying: list[tuple[Flight, Mapping[str, Any]]] = []
        self.schedule.group_serves(self._blocks)

    def _give_up(self, stream: Stream, error: PythonMpError) -> None:
        if self.schedule.remove(stream):
            self.refusals.refuse([stream], error)

    def ask(self, prompt: Sequence[int], answer: Parts | None = None, **parameters: Any) -> Parts:
        answer = answer or Parts()
        inputs = {"INPUT_IDS": np.array([prompt], np.int32)}
        stream = self.reader.read(inputs, parameters, answer)
        stream.arrived = float(len(self.steps)) + stream.arrived * 1e-9
        self.schedule.add(stream)
        return answer

    def cancel(self, answer: Parts) -> None:
        """As the expiry does."""
        answer.cancelled = True
        for each in self.schedule.waiting_since(np.inf):
            if each.answer is answer:
                self._give_up(each, RequestFailed("cancelled"))

    def lend(self, peer: Bench) -> None:
        """What waits first is computed there; what comes of it is heard by `hear`."""
        if stream := self.schedule.lend(away.may_go):
            inputs, said = stream.described()
            copies = {name: array.copy() for name, array in inputs.items()}
            guest = peer.schedule.guest(copies, json.loads(json.dumps(said)), Home(self, stream))
            guest.guest = True
            try:
                peer.schedule.add(guest)
            except TooLarge:
                self._stray(stream)

    def hear(self) -> None:
        while self.heard:
            home, text = self.heard.popleft()
            if not home.waits:
                continue
            if text:
                self.schedule.hear(home.stream, text)
            elif home.stream.is_over:
                self.schedule.settle(home.stream)
            else:
                self._stray(home.stream)

    def _stray(self, stream: Stream) -> None:
        """As Helper._book, if the peer has too little room."""
        stream.strays += 1
        self.schedule.put_back([stream])

    def lose_peer(self) -> None:
        """With all that is there."""
        self.schedule.put_back(list(self.schedule._lent))

    def cut(self) -> bool:
        """Whether there was something to be computed."""
        if len(self.flying) >= self.depth:
            return False
        step = self.schedule.next_batch(self.flights)
        self._check_those_in_flight()
        if step is None:
            return False
        self.steps.append(step)
        inputs = {name: np.concatenate(each) for name, each in step.pack(self.config).items()}
        flight = Flight(step, 0, 0.0, {1})
        self.flights.add(flight)
        self.flying.append((flight, inputs))
        return True

    def _check_those_in_flight(self) -> None:
        """What is computed somewhere has its blocks, or is over."""
        for step in (flight.batch for flight, _ in self.flying):
            if step.epoch == self.schedule._epoch:
                assert all(stream.runs or stream.is_over for stream in step.streams)

    def hoard(self) -> None:
        """As others do that run: all free blocks are taken, or those given back."""
        pool, blocks = self._hoard
        self._hoard = (self.schedule._running.pool, [])
        if blocks:
            pool.release(blocks)
        elif free := self._hoard[0].free:
            self._hoard[1].extend(self._hoard[0].take((), free) or ())

    def land(self) -> None:
        flight, inputs = self.flying.pop(0)
        try:
            if self.refuses:
                self.refuses = False
                raise InvalidInput("no memory is left")
            flight.outputs = dict(self.engine.begin(inputs)())
        except InvalidInput as error:
            flight.refusal = Refusal("InvalidInput", str(error), error.sequences)
        except (RuntimeError, SystemExit) as error:
            self.die(GroupEnded("rank 0 raised", raised=str(error)))
            return
        if self.spoil and flight.outputs:
            self.spoil(flight.outputs)
            self.spoil = None
        if flight.outputs is not None and (fault := flight.batch.fault(flight.outputs)):
            self.faults.append(fault)
            self.die(GroupEnded("rank 0 raised", raised=fault))
            return
        flight.waiting_for.clear()
        flight.held = False
        self.flights.take_landed()
        self.schedule.book(flight)
        self.schedule.answer(flight)

    def die(self, ended: GroupEnded) -> None:
        """As Replica.group_ended."""
        self.deaths += 1
        in_hand = self.schedule.in_hand(self.flights)
        poison = self.schedule.guilty(self.flights, ended)
        self.refusals.refuse(poison, RequestFailed(ended.raised or str(ended)))
        self.schedule.put_back(in_hand)
        self._begin()

    def step(self) -> bool:
        """Whether something was done."""
        while self.cut():
            pass
        if self.flying:
            self.land()
            return True
        return False

    def run(self, most: int = 10_000) -> None:
        if self._hoard[1]:
            self.hoard()
        while self.step():
            most -= 1
            assert most, "it does not come to an end"

    def close(self) -> None:
        """When all is answered; nothing is left then."""
        self.schedule.stop()
        pool = self.schedule._running.pool
        assert pool.free == pool.blocks, "blocks are lost"
        assert not self.schedule.has_open
