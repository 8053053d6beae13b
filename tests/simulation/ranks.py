"""Simulated ranks: the product's own loop and its echo engines, in a simulated process each."""

import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from python_mp.rank.engines.echo_decoder import FAULTS_FROM

from .machine import Process
from .modules import Popen, Socket, here

RAISE, EXIT, SLEEP, HANG, SEGFAULT, REFUSE = range(1, 7)
_MAX_ORDER = 1 << 20
_ARGUMENTS = 1000


class Ranks:
    """Where ranks come from, in place of rank/forkserver.py, whose orders it takes."""

    def __init__(
        self,
        product: SimpleNamespace,
        start_seconds: float,
        computed: Callable[[Process, Any], None],
    ) -> None:
        self._start_seconds = start_seconds
        self._product = product
        self._computed = computed
        self.failing_starts: dict[int, int] = {}
        """Replica -> starts that fail from now on."""
        Popen.start = self._popen

    def _popen(self, _: Popen, arguments: list[str], descriptors: Iterable[int]) -> Process:
        (descriptor,) = descriptors
        forkserver = here.machine.spawn("forkserver", here.machine.process)
        ours = os.dup(descriptor)
        forkserver.run(lambda: self._serve(forkserver, Socket(fileno=ours)), "forkserver")
        return forkserver

    def _serve(self, forkserver: Process, orders: Socket) -> None:
        here.machine.park(timeout=self._start_seconds)
        orders.send(b"ready")
        while True:
            order, descriptors, _, _ = socket.recv_fds(orders, _MAX_ORDER, 4)
            if not order:
                forkserver.end(0)
            raw = json.loads(order)
            if isinstance(raw, int):
                answer = {"code": here.machine.processes[raw].exit_code}
            else:
                answer = {"pid": self._fork(raw, descriptors)}
            orders.send(json.dumps(answer).encode())

    def _fork(self, order: Mapping[str, Any], descriptors: list[int]) -> int:
        control, arena, region, stacks = descriptors
        os.close(region)
        os.close(stacks)
        spec = self._product.rank_spec.RankSpec.from_json(json.dumps(order))
        rank = here.machine.spawn(f"rank {spec.replica}.{spec.rank}", here.machine.process)
        connection = Socket(fileno=control, process=rank)
        memory = self._product.arena.Arena(arena, spec.slots, spec.half)
        os.close(arena)  # The mapping stays.
        spec = replace(spec, parent=rank.pid, control_fd=control, arena_fd=arena)
        rank.run(lambda: self._run(rank, spec, connection, memory), rank.name)
        return rank.pid

    def _run(self, rank: Process, spec: Any, control: Socket, arena: Any) -> None:
        message = self._product.message
        connection = self._product.sockets.Connection(control)
        here.machine.park(timeout=self._start_seconds)
        if self.failing_starts.get(spec.replica, 0) > 0:
            self.failing_starts[spec.replica] -= 1
            rank.end(1)
        engine = _Engine(self._product, spec, rank, self._computed)
        code = 0
        with suppress(OSError):  # The front has hung up.
            ready = json.dumps({"blocks": engine.blocks})
            connection.send(message.Message(message.Kind.READY, text=ready))
            code = self._product.main.serve(spec, connection, arena, engine)
        rank.end(code)


class _Engine:
    """An echo engine, of which one hears what it is given; to sleep is to work here."""

    def __init__(
        self,
        product: SimpleNamespace,
        spec: Any,
        rank: Process,
        computed: Callable[[Process, Mapping[str, Any]], None],
    ) -> None:
        generates = spec.config.parameters.generates
        self._echo = (product.echo_decoder.EchoDecoder if generates else product.echo.Echo)(spec)
        self._rank = rank
        self._computed = computed
        self.phases: dict[str, float] = {}

    def begin(self, inputs: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]]:
        self._computed(self._rank, inputs)
        here.machine.wobble()
        self._rank.works = _works(inputs)
        try:
            outputs = self._echo.begin(inputs)
        finally:
            self._rank.works = False
        here.machine.wobble()
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._echo, name)


def _works(inputs: Mapping[str, Any]) -> bool:
    """Whether it uses its processor for as long as it takes."""
    if "FAULT" in inputs:
        faults = inputs["FAULT"][:, 0]
        return bool(np.any(faults == SLEEP)) and not np.any(faults == HANG)
    return not any(each // _ARGUMENTS == HANG for each in inputs["INPUT_IDS"] - FAULTS_FROM)
