"""What an agent does with orders that come at a bad moment, or fail."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from python_mp.agent import blocks
from python_mp.agent.contents import Artifact
from python_mp.agent.fetching import Room
from python_mp.agent.fronts import Block, Front
from python_mp.agent.host import Connected
from python_mp.agent.link import Frame, Link
from python_mp.agent.run_folder import run_folder
from python_mp.front.supervise.forkserver_client import ForkserverLost
from python_mp.model.config import ModelConfig
from python_mp.model.rank_spec import RankSpec
from python_mp.wire.arena import Arena
from python_mp.wire.message import Kind, Message
from tests.support.configs import echo_config

NOBODY = SimpleNamespace()


@pytest.fixture
def spec(tmp_path: Path) -> RankSpec:
    """Of a rank of a model that is not on this host."""
    (tmp_path / "echo" / "1").mkdir(parents=True)
    (tmp_path / "echo" / "1" / "weights").write_text("a")
    config = echo_config(tmp_path / "echo", pipeline_parallel_size=2, hosts=2)
    where = {"rank": 1, "tensor_rank": 0, "stage": 1, "world_size": 2, "device": 0, "host": 1}
    sizes = {"cpus": (), "threads": 1, "slots": 2, "half": 1 << 16, "scratch": ""}
    return RankSpec(config.source, replica=0, generation=1, **where, **sizes)  # type: ignore[arg-type]


class Pipe:
    """What an agent and its exchange tell each other, in memory."""

    def __init__(self) -> None:
        self.to_agent, self.to_exchange = asyncio.StreamReader(), asyncio.StreamReader()
        self.agent = Link(self.to_agent, _writer(self.to_exchange))
        self.exchange = Link(self.to_exchange, _writer(self.to_agent))
        self.exchange.most = lambda channel: 1 << 22

    async def hear(self, kind: Kind) -> Frame:
        """The next one of this kind."""
        while frame := await self.exchange.receive():
            if frame.message.kind is kind:
                return frame
        raise AssertionError(f"the agent has hung up before it said {kind.name}")


def _writer(reader: asyncio.StreamReader) -> asyncio.StreamWriter:
    transport = SimpleNamespace(abort=reader.feed_eof)
    return SimpleNamespace(  # type: ignore[return-value]
        is_closing=lambda: False, write=reader.feed_data, transport=transport
    )


async def ended_while_it_starts(spec: RankSpec, folder: Path) -> list[str]:
    """A rank whose artifact is wanted, twice: ended before anything was done for it, and while a
    piece is on its way. Then a third one. What became of them."""
    pipe = Pipe()
    room = Room(folder, 1 << 20)
    artifact = Artifact.of(spec.config.folder)
    source = spec.source[0], "/nowhere/echo", *spec.source[2:]
    order = {"spec": json.dumps(asdict(spec) | {"source": source}), "block": "b"}
    start = json.dumps(order | {"files": artifact.to_json()}).encode()
    connected = Connected(pipe.agent, 60.0, folder, room, SimpleNamespace())  # type: ignore[arg-type]
    serving = asyncio.create_task(connected.serve())
    pipe.exchange.send(1, Message(Kind.START), start)
    pipe.exchange.send(1, Message(Kind.KILL))
    found = [json.loads((await pipe.hear(Kind.ENDED)).payload)["lost"]]
    pipe.exchange.send(2, Message(Kind.START), start)
    await pipe.hear(Kind.FETCH)
    pipe.exchange.send(2, Message(Kind.KILL))
    found.append(json.loads((await pipe.hear(Kind.ENDED)).payload)["lost"])
    pipe.exchange.send(0, Message(Kind.FETCH), b"a")
    pipe.exchange.send(3, Message(Kind.START), start)
    await pipe.hear(Kind.FETCH)
    pipe.exchange.send(0, Message(Kind.FETCH), b"b")
    found.append(json.loads((await pipe.hear(Kind.ENDED)).payload)["lost"])
    pipe.to_agent.feed_eof()
    await serving
    return found


def test_a_rank_that_is_ended_while_it_starts_ends_nothing_else(
    spec: RankSpec, tmp_path: Path
) -> None:
    """What it had asked for comes all the same, and is not taken for what the next one asks for."""
    first, second, third = asyncio.run(ended_while_it_starts(spec, tmp_path / "cache"))
    assert first == second == "it was ended while it started"
    assert "weights came with another content than was announced" in third


class Imports:
    """Forkservers that only say what is imported for which folder."""

    def __init__(self) -> None:
        self.began: list[Path] = []

    def has(self, _: str, version: str) -> bool:
        return bool(self.began) and self.began[-1].name == version

    def begin(self, config: ModelConfig) -> None:
        if self.began[-1:] != [config.folder]:
            self.began.append(config.folder)

    async def get(self, config: ModelConfig) -> None:
        self.begin(config)


async def prepared_twice(spec: RankSpec, files: str, folder: Path) -> list[Path]:
    pipe, imports = Pipe(), Imports()
    connected = Connected(pipe.agent, 60.0, folder, Room(folder, 1 << 20), imports)  # type: ignore[arg-type]
    serving = asyncio.create_task(connected.serve())
    for number in range(2):
        preparing = asyncio.create_task(connected._prepared(spec.source, files))
        if not number:
            await pipe.hear(Kind.FETCH)
            pipe.exchange.send(0, Message(Kind.FETCH), b"b")
        await preparing
    pipe.to_agent.feed_eof()
    await serving
    return imports.began


def test_what_was_imported_once_is_not_imported_again_for_each_start(
    spec: RankSpec, tmp_path: Path
) -> None:
    """Though the leader's path has files here that look the same and are not."""
    artifact = Artifact.of(spec.config.folder)
    (spec.config.folder / "weights").write_text("b")
    wanted = Artifact.of(spec.config.folder).to_json()
    (spec.config.folder / "weights").write_text("a")
    assert Artifact.of(spec.config.folder) == artifact
    began = asyncio.run(prepared_twice(spec, wanted, tmp_path / "cache"))
    assert began[0] == spec.config.folder
    assert len(began) == 2


class Lost:
    """A forkserver that is no more."""

    def fork(self, _: RankSpec, __: list[int]) -> NoReturn:
        raise ForkserverLost("it is dead")


@pytest.fixture
def opened() -> Iterator[None]:
    """Within it no more descriptors are opened than are closed."""
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.usefixtures("opened")
def test_a_block_whose_first_rank_cannot_start_leaves_nothing(
    spec: RankSpec, tmp_path: Path
) -> None:
    ended: list[bool] = []
    over = lambda: ended.append(True)  # noqa: E731
    made = blocks.Block("b", spec, Lost(), tmp_path, NOBODY, over)  # type: ignore[arg-type]
    with pytest.raises(ForkserverLost):
        made.start(1, spec)
    assert ended == [True]
    assert not [*tmp_path.glob("ranks-*")]


@pytest.mark.parametrize("what", ["no such host", "no socket", "too few"])
def test_an_order_that_cannot_be_obeyed_leaves_no_descriptor(spec: RankSpec, what: str) -> None:
    async def tell(order: object, descriptors: list[int]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        front = Front(theirs, NOBODY)  # type: ignore[arg-type]
        front._blocks = [Block(SimpleNamespace(blocks=1))]  # type: ignore[arg-type]
        with ours:
            socket.send_fds(ours, [json.dumps(order).encode()], descriptors)
            assert await asyncio.to_thread(ours.recv, 1) == b""

    arena = Arena.create(spec.slots, spec.half)
    ended, life = os.pipe2(os.O_NONBLOCK)
    descriptors = [life, arena.fd, arena.fd, arena.fd, life]
    order = {"start": 1, "spec": asdict(spec) | {"host": 9 if what == "no such host" else 1}}
    asyncio.run(tell(order, descriptors[: 3 if what == "too few" else 5]))
    arena.close()
    os.close(life)
    assert os.read(ended, 1) == b"", "else somebody has the other end of this pipe"
    os.close(ended)


def test_a_folder_that_its_agent_has_not_locked_yet_is_not_taken_for_a_leftover(
    tmp_path: Path,
) -> None:
    new = Path(tempfile.mkdtemp(prefix="python_mp-agent-", dir=tmp_path))
    with run_folder(tmp_path) as one, run_folder(tmp_path) as other:
        assert new.is_dir()
        assert one.is_dir()
        assert other.is_dir()
