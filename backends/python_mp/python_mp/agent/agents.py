"""The exchange's side of an agent: the ranks on that host, and whether anything is heard of it."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Protocol

from ..machine.vital import Vital
from ..model.errors import describe
from ..model.rank_spec import Source
from ..wire.exchange_line import End
from ..wire.message import MAX_MESSAGE, Kind, Message
from .contents import Artifact
from .fetching import PIECE
from .lease import keep
from .link import CONTROL, Frame, Link, LinkError

log = logging.getLogger("exchange")

_LONGEST = 1 << 20
"""Bytes of a frame that is about the host itself: vitals of ranks, stacks."""


class Rank(Protocol):
    """One on the agent's host, as its front's side has it."""

    half: int

    def hear(self, message: Message, payload: bytes) -> None:
        """It says something to its front."""

    def note(self, pid: int, vital: Vital) -> None:
        """By the host's last heartbeat."""

    def write_stacks(self, text: bytes) -> None: ...

    def end(self, how: End) -> None: ...


class Agent:
    """Connected, and known by its name."""

    def __init__(self, name: str, link: Link, lease: float) -> None:
        self.name = name
        self.link = link
        self.blocks = 0
        """Parts of replicas that it has, or will have."""
        self._lease = lease
        self._ranks: dict[int, Rank] = {}
        self._folders: dict[str, Path] = {}
        """Of artifacts of which it may fetch files, by digest."""
        self._next_channel = 1
        link.most = self._most

    def start(self, rank: Rank, block: str, spec: str, folder: Path, artifact: Artifact) -> int:
        """Has it start a rank; the channel on which messages reach that."""
        channel, self._next_channel = self._next_channel, self._next_channel + 1
        self._ranks[channel] = rank
        self._order(channel, Kind.START, folder, artifact, spec=spec, block=block)
        return channel

    def prepare(self, source: Source, folder: Path, artifact: Artifact) -> None:
        """Has it fetch and import what ranks of this model need, so that one starts at once."""
        self._order(CONTROL, Kind.PREPARE, folder, artifact, source=source)

    def _order(
        self, channel: int, kind: Kind, folder: Path, artifact: Artifact, **more: object
    ) -> None:
        self._folders[artifact.digest] = folder
        order = {"files": artifact.to_json(), **more}
        self.link.send(channel, Message(kind), json.dumps(order).encode())

    async def listen(self) -> str:
        """Until the connection ends; why it did."""
        pulse = asyncio.create_task(keep(self.link, self._lease, self._say_pulse))
        why = "its agent has ended"
        try:
            while frame := await self.link.receive():
                await self._take(frame)
        except OSError as error:
            why = f"the connection to its agent broke: {describe(error)}"
        except Exception as error:  # Whatever comes from another host ends no more than that.
            why = f"its agent said what no agent says: {describe(error)}"
        finally:
            pulse.cancel()
            self.link.close()
        if self.link.silence >= self._lease:
            why = f"no word from it for {self._lease:g} s"
        return why

    def lose(self, why: str) -> None:
        """All ranks on it count as ended."""
        for rank in list(self._ranks.values()):
            rank.end(End(lost=f"host {self.name} is lost: {why}"))
        self._ranks.clear()

    def _say_pulse(self) -> None:
        self.link.send(CONTROL, Message(Kind.PULSE))

    async def _take(self, frame: Frame) -> None:
        if frame.channel == CONTROL:
            await self._take_own(frame)
        elif rank := self._ranks.get(frame.channel):  # Else it was ended meanwhile.
            if frame.message.kind is Kind.ENDED:
                del self._ranks[frame.channel]
                rank.end(End(**json.loads(frame.payload)))
            elif frame.message.kind is Kind.STACKS:
                rank.write_stacks(frame.payload)
            else:
                rank.hear(frame.message, frame.payload)

    async def _take_own(self, frame: Frame) -> None:
        if frame.message.kind is Kind.PULSE:
            for channel, (pid, state, seconds) in json.loads(frame.payload or b"{}").items():
                if rank := self._ranks.get(int(channel)):
                    rank.note(int(pid), Vital(str(state)[:1], float(seconds)))
        elif frame.message.kind is Kind.FETCH:
            digest, name, offset = json.loads(frame.message.text)
            piece = await asyncio.to_thread(_read, self._folders[digest], name, int(offset))
            self.link.send(CONTROL, Message(Kind.FETCH), piece)
            await self.link.drain()
        else:
            raise LinkError(f"a message {frame.message.kind.name}")

    def _most(self, channel: int) -> int:
        rank = self._ranks.get(channel)
        return MAX_MESSAGE + (max(rank.half, _LONGEST) if rank else _LONGEST)


def _read(folder: Path, name: str, offset: int) -> bytes:
    """Raises LookupError where the artifact has no such file."""
    if name not in Artifact.of(folder).files or offset < 0:
        raise LookupError(f"no file {name!r} to fetch")
    with (folder / name).open("rb") as file:
        file.seek(offset)
        return file.read(PIECE)
