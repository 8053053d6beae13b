"""Who dials the exchange and is no agent, whatever it says."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_mp.agent import door, exchange_server, handshake
from python_mp.agent.agents import Agent
from python_mp.agent.door import Door
from python_mp.agent.handshake import Refused
from python_mp.agent.link import Link, LinkError
from python_mp.wire.message import Kind, Message
from tests.support.other_hosts import certificate

TOKEN = b"known to the hosts"
MARK = "\x1b[2J"
TEXT = st.sampled_from(["", MARK, "\ud800", "é", "a" * 64, "{}", '{"exchange": 1}'])
VALUES = st.recursive(TEXT | st.none() | st.integers() | st.floats(), st.lists, max_leaves=3)
SAID = st.dictionaries(st.sampled_from(["said", "proof", "name", "nonce"]), VALUES) | VALUES
KINDS = st.sampled_from([Kind.HELLO, Kind.REFUSED, Kind.PULSE, Kind.START])


async def welcomed(*said: Message) -> str:
    """What the exchange makes of one that says so."""
    reader = asyncio.StreamReader()
    frames: list[bytes] = []
    writer = SimpleNamespace(is_closing=lambda: False, write=frames.append)
    link = Link(reader, writer)  # type: ignore[arg-type]
    for each in said:
        link.send(0, each)
    for frame in frames:
        reader.feed_data(frame)
    reader.feed_eof()
    try:
        await handshake.welcome(link, TOKEN, 5.0, lambda name, versions: "")
    except (Refused, LinkError) as error:
        return str(error)
    raise AssertionError("it is let in")


@given(KINDS, SAID)
def test_whatever_a_stranger_says_it_is_refused_and_not_quoted(kind: Kind, said: Any) -> None:
    for text in (json.dumps(said), MARK):
        assert MARK not in asyncio.run(welcomed(Message(kind, text=text)))


async def knocking(encryption: ssl.SSLContext | None, count: int) -> tuple[int, float]:
    """So many who say nothing: how many of them are still connected, and after what time another
    one is heard."""
    loop = asyncio.get_running_loop()
    heard = loop.create_future()

    async def greet(link: Link) -> Agent:
        frame = await link.receive()
        heard.set_result(frame)
        raise Refused("it was a test")

    async def serve(_: Agent) -> NoReturn:
        raise AssertionError("nobody is an agent")

    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        listener.setblocking(False)
        silent = [socket.create_connection(listener.getsockname()) for _ in range(count)]
        watching = asyncio.create_task(Door(encryption, greet, serve).watch(listener))
        began = loop.time()
        client = None
        if encryption:
            client = ssl.create_default_context()
            client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(*listener.getsockname(), ssl=client)
        Link(reader, writer).send(0, Message(Kind.PULSE))
        await heard
        took = loop.time() - began
        connected = sum(_is_open(each) for each in silent)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        writer.close()
        for each in silent:
            each.close()
    return connected, took


def _is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.fixture
def certified(tmp_path: Path) -> ssl.SSLContext:
    """Of a server."""
    made = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*made)
    return context


@pytest.mark.parametrize("encrypted", [False, True])
def test_nobody_keeps_agents_out_by_saying_nothing(
    encrypted: bool, certified: ssl.SSLContext
) -> None:
    """Nor has this process more than a few descriptors for it."""
    connected, took = asyncio.run(knocking(certified if encrypted else None, 200))
    assert connected <= door._MOST_STRANGERS
    assert took < handshake.SECONDS / 2


def test_no_descriptor_left_is_no_reason_to_look_again_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor to end, nor to fill the log."""
    pauses: list[float] = []

    async def sock_accept(_: socket.socket) -> NoReturn:
        raise OSError(24, "Too many open files")

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            raise asyncio.CancelledError

    loop = SimpleNamespace(sock_accept=sock_accept)
    monkeypatch.setattr(
        door, "asyncio", SimpleNamespace(get_running_loop=lambda: loop, sleep=sleep)
    )
    watching = Door(None, None, None).watch(None)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        watching.send(None)
    assert min(pauses) > 0.1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "0.5"])
def test_a_lease_that_would_end_everything_is_refused(seconds: str) -> None:
    ours = exchange_server.parse(["name", f"--lease-seconds={seconds}"])
    with pytest.raises(ValueError, match="a lease is at least 1 s"):
        exchange_server.check(ours, {})
