"""What an agent does while it is connected: starts ranks, relays, and says how they are."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..front.supervise.forkserver_client import ForkserverClient
from ..model.config_json import parse
from ..model.errors import describe
from ..model.rank_spec import RankSpec, Source
from ..wire.message import MAX_MESSAGE, Kind, Message
from .blocks import Block
from .contents import Artifact
from .fetching import PIECE, Cache, Room
from .forkservers import Forkservers
from .lease import keep
from .link import CONTROL, Frame, Link, LinkError

log = logging.getLogger("agent")

_ORDER_BYTES = 4 << 20


class Connected:
    """One connection to the exchange, and the ranks that were started over it: they end with it.

    Args:
        lease: seconds without a word of the exchange after which it counts as lost.
    """

    def __init__(
        self, link: Link, lease: float, runtime: Path, room: Room, forkservers: Forkservers
    ) -> None:
        self._link = link
        self._lease = lease
        self._runtime = runtime
        self._forkservers = forkservers
        self._cache = Cache(room, self._fetch, self._versions)
        self._blocks: dict[str, Block] = {}
        self._of_channel: dict[int, Block] = {}
        self._wanted: deque[asyncio.Future[bytes]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: dict[int, asyncio.Task[None]] = {}
        """By channels."""
        link.most = self._most

    async def serve(self) -> str:
        """Until the connection ends; why it did. No rank is left then."""
        pulse = asyncio.create_task(keep(self._link, self._lease, self._say_pulse))
        why = "the exchange has hung up"
        try:
            while frame := await self._link.receive():
                self._take(frame)
        except OSError as error:
            why = f"the connection to the exchange broke: {describe(error)}"
        except Exception as error:
            log.exception("the exchange said what no exchange says")
            why = describe(error)
        finally:
            pulse.cancel()
            self._end()
        if self._link.silence >= self._lease:
            why = f"no word of the exchange for {self._lease:g} s"
        return why

    def _end(self) -> None:
        self._link.close()
        self._cache.close()
        for task in self._tasks:
            task.cancel()
        for future in self._wanted:
            future.cancel()
        for block in list(self._blocks.values()):
            try:
                block.kill()
            except Exception:  # The others end all the same.
                log.exception("the ranks of a block cannot be ended")

    def _say_pulse(self) -> None:
        """With the pids and vitals of all ranks."""
        vitals: dict[int, Any] = {}
        for channel, block in self._of_channel.items():
            if rank := block.ranks.get(channel):
                with suppress(OSError):
                    vitals[channel] = rank.process.pid, *rank.vital()
        self._link.send(CONTROL, Message(Kind.PULSE), json.dumps(vitals).encode())

    def _take(self, frame: Frame) -> None:
        kind = frame.message.kind
        if frame.channel == CONTROL:
            if kind is Kind.FETCH and self._wanted:
                future = self._wanted.popleft()
                if not future.done():  # Who wanted it was ended meanwhile.
                    future.set_result(frame.payload)
            elif kind is Kind.PREPARE:
                self._run(self._prepare(json.loads(frame.payload)))
            elif kind is not Kind.PULSE:
                raise LinkError(f"the exchange says {kind.name}")
            return
        if kind is Kind.START:
            task = self._run(self._start(frame.channel, json.loads(frame.payload)))
            self._starting[frame.channel] = task
            task.add_done_callback(partial(self._started, frame.channel))
            return
        if kind is Kind.KILL and frame.channel in self._starting:
            self._starting[frame.channel].cancel()
            return
        block = self._of_channel.get(frame.channel)
        rank = block and block.ranks.get(frame.channel)
        if not rank:  # It has ended meanwhile.
            return
        if kind is Kind.KILL:
            rank.process.kill()
        elif kind is Kind.STACKS:
            self._run(rank.tell_stacks())
        else:
            rank.hear(frame.message, frame.payload)

    def _started(self, channel: int, task: asyncio.Task[None]) -> None:
        """Or ended while it started, perhaps before it began to."""
        del self._starting[channel]
        if task.cancelled():
            self._say_end(channel, "it was ended while it started")

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start(self, channel: int, order: dict[str, Any]) -> None:
        try:
            spec = RankSpec.from_json(order["spec"])
            source, forkserver = await self._prepared(spec.source, order["files"])
            spec = replace(spec, source=source)
            block = self._block(order["block"], spec, forkserver)
            self._of_channel[channel] = block
            block.start(channel, spec)
            self._say_pulse()  # So that its front knows the pid before it serves.
        except Exception as error:
            log.error("a rank cannot be started: %s", describe(error))
            self._say_end(channel, f"it cannot be started there: {describe(error)}")

    def _say_end(self, channel: int, why: str) -> None:
        self._link.send(channel, Message(Kind.ENDED), json.dumps({"lost": why}).encode())

    async def _prepare(self, order: dict[str, Any]) -> None:
        try:
            source, _ = await self._prepared(tuple(order["source"]), order["files"])
            log.info("ready for ranks of %s", Path(source[1]).name)
        except Exception as error:
            log.warning("a model cannot be prepared: %s", describe(error))

    async def _prepared(self, source: Source, files: str) -> tuple[Source, ForkserverClient]:
        """With the model's folder as it is on this host, and what has imported its engine: that
        takes seconds, and so does it to look through the files."""
        text, there, version, *rest = source
        artifact = Artifact.from_json(files)
        likely = self._cache.likely(Path(there), version, artifact)
        if likely and not self._forkservers.has(parse(*source).name, version):
            self._forkservers.begin(parse(text, str(likely), version, *rest))
        repository = await self._cache.repository(Path(there), version, artifact)
        here = text, str(repository), version, *rest
        return here, await self._forkservers.get(parse(*here))

    def _versions(self) -> list[Path]:
        return [block.version for block in self._blocks.values()]

    def _block(self, name: str, spec: RankSpec, forkserver: ForkserverClient) -> Block:
        if name not in self._blocks:
            over = lambda: self._forget(name)  # noqa: E731
            self._blocks[name] = Block(name, spec, forkserver, self._runtime, self._link, over)
        return self._blocks[name]

    def _forget(self, name: str) -> None:
        block = self._blocks.pop(name, None)
        self._of_channel = {c: each for c, each in self._of_channel.items() if each is not block}
        self._forkservers.retire({each.forkserver for each in self._blocks.values()})

    async def _fetch(self, digest: str, name: str, offset: int) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._wanted.append(future)
        self._link.send(CONTROL, Message(Kind.FETCH, text=json.dumps([digest, name, offset])))
        return await future

    def _most(self, channel: int) -> int:
        block = self._of_channel.get(channel)
        return MAX_MESSAGE + max(block.half if block else 0, _ORDER_BYTES, PIECE)
