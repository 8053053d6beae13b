"""The exchange's side of a front: one generation of a replica, and its ranks on other hosts."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ..machine.vital import Vital
from ..model.errors import InvalidInput, describe
from ..model.rank_spec import RankSpec, Source
from ..wire.arena import Arena
from ..wire.exchange_line import DESCRIPTORS, MAX_ORDER, End, Vitals
from ..wire.message import MAX_MESSAGE, Kind, Message
from .agents import Agent
from .contents import Artifact

log = logging.getLogger("exchange")


class Block:
    """The ranks of one generation on one host. A batch's inputs travel there once."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.name = secrets.token_hex(8)
        self.sent = -1
        """The last batch whose inputs are there, or under way."""


class Relay:
    """Between the front's socket for a rank and the rank's channel."""

    def __init__(self, block: Block, spec: RankSpec, descriptors: list[int]) -> None:
        """They are its own, unless it raises ValueError or OSError."""
        control, arena, self._stacks, vitals, self._life = descriptors
        self._held = [self._stacks, vitals, self._life]
        self._arena = Arena(arena, spec.slots, spec.half)
        self._vitals = Vitals(vitals)
        self._socket = socket.socket(fileno=control)
        self._socket.setblocking(False)
        self._block = block
        self._channel = 0
        self.half = spec.half
        self.is_over = False

    def start(self, spec: RankSpec, folder: Path, artifact: Artifact) -> None:
        if self.is_over:
            return
        agent = self._block.agent
        self._channel = agent.start(self, self._block.name, spec.to_json(), folder, artifact)
        asyncio.get_running_loop().add_reader(self._socket, self._pass_on)

    def order(self, kind: Kind) -> None:
        if self._channel:
            self._block.agent.link.send(self._channel, Message(kind))

    def hear(self, message: Message, payload: bytes) -> None:
        """From the rank. Raises InvalidInput where its outputs do not fit."""
        if self.is_over:
            return
        if payload or message.tensors:
            place = self._arena.output_bytes(message.slot, message.tensors)
            if len(place) != len(payload):
                raise InvalidInput("an answer without its bytes")
            place[:] = payload
        try:
            self._socket.send(message.encode())
        except OSError as error:
            self.end(End(lost=f"its front does not hear it: {describe(error)}"))

    def note(self, pid: int, vital: Vital) -> None:
        if not self.is_over:
            self._vitals.write(pid, vital)

    def write_stacks(self, text: bytes) -> None:
        if not self.is_over:
            os.write(self._stacks, text)

    def end(self, how: End) -> None:
        """The front hears of it."""
        if self.is_over:
            return
        self.is_over = True
        asyncio.get_running_loop().remove_reader(self._socket)
        with suppress(OSError):  # Nobody is there any more to hear it.
            os.write(self._life, how.encode())
        self._socket.close()
        self._arena.close()
        for descriptor in self._held:
            os.close(descriptor)

    def kill(self) -> None:
        """Ends the rank; when it has ended the agent says so."""
        if self._channel:
            self.order(Kind.KILL)
        else:
            self.end(End(lost="it was ended before it was started"))

    def _pass_on(self) -> None:
        """From the front."""
        try:
            data = self._socket.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # The front has hung up, upon which a rank exits.
            asyncio.get_running_loop().remove_reader(self._socket)
            self.kill()
            return
        message = Message.decode(data)
        payload = memoryview(b"")
        if message.kind is Kind.FORWARD and self._block.sent != message.batch:
            payload = self._arena.input_bytes(message.slot, message.tensors)
            self._block.sent = message.batch
        self._block.agent.link.send(self._channel, data, payload)


class Agents(Protocol):
    """Those that are connected."""

    def choose(self, number: int) -> list[Agent] | str:
        """So many, those with the least to do; or why there are too few."""

    def expect(self, source: Source) -> None:
        """Of this model ranks are started: any agent may be asked for some when a host is lost."""


class Front:
    """A line to a front, until that hangs up."""

    def __init__(self, connection: socket.socket, agents: Agents) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._agents = agents
        self._blocks: list[Block] = []
        self._relays: dict[int, Relay] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        asyncio.get_running_loop().add_reader(connection, self._take)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for task in self._tasks:
            task.cancel()
        for relay in self._relays.values():
            relay.kill()
            relay.end(End(lost="its front has hung up"))
        for block in self._blocks:
            block.agent.blocks -= 1
        self._blocks = []

    def _take(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, MAX_ORDER, DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self.close()
            return
        try:
            self._obey(json.loads(data), descriptors)
        except Exception:
            log.exception("a front's order could not be obeyed")
            for descriptor in descriptors:
                os.close(descriptor)
            self.close()

    def _obey(self, order: dict[str, Any], descriptors: list[int]) -> None:
        match order:
            case {"hosts": int(number)}:
                self._socket.send(json.dumps(self._find(number)).encode())
            case {"expect": list(source)}:
                self._agents.expect(tuple(source))
            case {"start": int(rank), "spec": dict(raw)}:
                self._start(rank, RankSpec.from_json(json.dumps(raw)), descriptors)
            case {"kill": int(rank)}:
                self._relays[rank].kill()
            case {"stacks": int(rank)}:
                self._relays[rank].order(Kind.STACKS)

    def _find(self, number: int) -> dict[str, Any]:
        found = self._agents.choose(number)
        if isinstance(found, str):
            return {"missing": found}
        for agent in found:
            agent.blocks += 1
        self._blocks = [Block(agent) for agent in found]
        return {
            "leader": found[0].link.own_address,
            "hosts": [(agent.name, agent.link.address) for agent in found],
        }

    def _start(self, rank: int, spec: RankSpec, descriptors: list[int]) -> None:
        relay = Relay(self._blocks[spec.host - 1], spec, descriptors)
        self._relays[rank] = relay
        task = asyncio.create_task(self._bring_up(relay, spec))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bring_up(self, relay: Relay, spec: RankSpec) -> None:
        try:
            folder = spec.config.folder
            artifact = await asyncio.to_thread(Artifact.of, folder)
            relay.start(spec, folder, artifact)
            self._agents.expect(spec.source)
        except Exception as error:
            log.exception("a rank cannot be started on another host")
            relay.end(End(lost=f"it cannot be started on another host: {describe(error)}"))
