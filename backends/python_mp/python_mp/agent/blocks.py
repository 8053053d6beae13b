"""On an agent's host: the ranks of one generation, and the memory that they share with the agent.

It stands where a front stands on Triton's host, so that a rank cannot tell the difference.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from ..front.place.cores import quota, share, threads
from ..front.supervise import scratch
from ..front.supervise.forkserver_client import ForkserverClient
from ..front.supervise.process import RankProcess, wait_all
from ..machine.vital import Vital
from ..model.errors import InvalidInput
from ..model.rank_spec import RankSpec
from ..wire.arena import Arena
from ..wire.message import MAX_MESSAGE, Kind, Message
from ..wire.sockets import Connection
from .link import Link

log = logging.getLogger("agent")

_ABORT = b"\1\0\0\0"
_STACK_SECONDS = 0.3
_MOST_STACKS = 16 << 10
_EXIT_SECONDS = 1.0


class Block:
    """
    Args:
        runtime: a private folder.
        ended: is called when its last rank has ended.
    """

    def __init__(
        self,
        name: str,
        spec: RankSpec,
        forkserver: ForkserverClient,
        runtime: Path,
        link: Link,
        ended: Callable[[], None],
    ) -> None:
        self.forkserver = forkserver
        self.ranks: dict[int, AgentRank] = {}
        """By their channels."""
        self._link = link
        self._ended = ended
        self.half = spec.half
        self.version = spec.config.folder
        with ExitStack() as held:
            self.arena = Arena.create(spec.slots, spec.half)
            held.callback(self.arena.close)
            self._region = _memory_file("collectives", held)
            self._folder = runtime / f"ranks-{os.getpid()}-{name}"
            self._folder.mkdir(mode=0o700)
            held.callback(scratch.remove, self._folder)
            self._held = held.pop_all()

    def start(self, channel: int, spec: RankSpec) -> None:
        """Where it cannot, and there is no other rank, the block ends. Raises OSError or
        ForkserverLost."""
        try:
            self.ranks[channel] = self._started(channel, self._fitted(spec))
        except BaseException:
            self._end_if_empty()
            raise

    def _started(self, channel: int, spec: RankSpec) -> AgentRank:
        with ExitStack() as held:
            stacks = _memory_file("stacks", held)
            ours, theirs = Connection.pair()
            held.callback(ours.close)
            with closing(theirs):
                descriptors = [theirs.fileno(), self.arena.fd, self._region, stacks]
                process = RankProcess(self.forkserver, spec, ours, descriptors)
            held.callback(process.close)
            rank = AgentRank(channel, process, stacks, self, self._link)
            self._held.push(held.pop_all())
            return rank

    def kill(self) -> None:
        """All ranks, and waits for their ends."""
        os.pwrite(self._region, _ABORT, 0)
        processes = [rank.process for rank in self.ranks.values()]
        for process in processes:
            process.kill()
        wait_all(processes, _EXIT_SECONDS)
        for rank in list(self.ranks.values()):
            rank.end()

    def over(self, channel: int) -> None:
        """One of its ranks has ended."""
        self.ranks.pop(channel, None)
        self._end_if_empty()

    def _end_if_empty(self) -> None:
        if not self.ranks:
            self._held.close()
            self._ended()

    def _fitted(self, spec: RankSpec) -> RankSpec:
        """To this host's cores, shared out among the replica's ranks on it."""
        each = spec.config.ranks_per_host
        cores = share([tuple(os.sched_getaffinity(0))] * each)[spec.rank % each]
        many = spec.config.parameters.threads_per_rank or threads(cores, each, quota())
        return replace(spec, cpus=cores, threads=many, scratch=str(self._folder))


class AgentRank:
    """A rank's process, between its socket and its channel."""

    def __init__(
        self, channel: int, process: RankProcess, stacks: int, block: Block, link: Link
    ) -> None:
        self.process = process
        self._channel = channel
        self._stacks = stacks
        self._block = block
        self._link = link
        self._loop = asyncio.get_running_loop()
        process.connection.socket.setblocking(False)
        self._loop.add_reader(process.connection.fileno(), self._pass_on)
        self._loop.add_reader(process.ended_fd, self.end)

    def hear(self, message: Message, payload: bytes) -> None:
        """From its front. Raises InvalidInput where the batch does not fit."""
        if payload:
            self._block.arena.input_bytes(message.slot, message.tensors)[:] = payload
        try:
            self.process.connection.send(message)
        except OSError as error:
            log.error("rank %d is not told of a batch, and ended: %s", self.process.rank, error)
            self.process.kill()

    def vital(self) -> Vital:
        return self.process.vital()

    async def tell_stacks(self) -> None:
        """What its threads do; it must be about to end."""
        self.process.ask_for_stacks()
        deadline = self._loop.time() + _STACK_SECONDS
        while not self.process.is_reaped and self._loop.time() < deadline:
            await asyncio.sleep(0.005)
            if self._has_stacks:
                break
        await asyncio.sleep(0.005)  # A stack comes in several writes.
        if not self.process.is_reaped:
            self._say_stacks()

    def end(self) -> None:
        """It has ended: its last words, then how."""
        if self.process.is_reaped:
            return
        self._loop.remove_reader(self.process.ended_fd)
        while self._pass_on():
            pass
        self._loop.remove_reader(self.process.connection.fileno())
        code = self.process.reap(0.0)
        self._say_stacks()
        said = json.dumps({"code": code}).encode()
        self._link.send(self._channel, Message(Kind.ENDED), said)
        self._block.over(self._channel)

    @property
    def _has_stacks(self) -> bool:
        return not self.process.is_reaped and os.fstat(self._stacks).st_size > 0

    def _say_stacks(self) -> None:
        if stacks := os.pread(self._stacks, _MOST_STACKS, 0):
            os.ftruncate(self._stacks, 0)
            self._link.send(self._channel, Message(Kind.STACKS), stacks)

    def _pass_on(self) -> bool:
        """From the rank to its front; whether there was anything."""
        try:
            data = self.process.connection.socket.recv(MAX_MESSAGE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self.process.connection.fileno())
            return False
        try:
            message = Message.decode(data)
            answer = self._block.arena.output_bytes(message.slot, message.tensors)
        except (ValueError, InvalidInput) as error:  # A user's module may write there.
            log.error("rank %d says what none of ours says: %s", self.process.rank, error)
            self.process.kill()
            return False
        self._link.send(self._channel, data, answer if message.tensors else b"")
        return True


def _memory_file(name: str, held: ExitStack) -> int:
    descriptor = os.memfd_create(f"python_mp-{name}", os.MFD_CLOEXEC)
    held.callback(os.close, descriptor)
    return descriptor
