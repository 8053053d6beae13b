"""The exchange, on Triton's host: agents of other hosts dial it, fronts ask it for ranks there.

    python -m python_mp.agent.exchange_server NAME --host ADDRESS --port PORT

It relays what fronts and those ranks tell each other, and has no part in it. When it ends, so do
the ranks on all other hosts, and their fronts start anew once it is back.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..model.errors import describe
from ..model.rank_spec import RankSpec
from ..wire.exchange_line import address, is_of_this_user
from . import handshake, tls
from .agents import Agent
from .contents import Artifact
from .fronts import Front
from .handshake import Refused
from .link import Link, LinkError
from .shared_token import TokenMissing, read_token
from .versions import difference

log = logging.getLogger("exchange")

LEASE_SECONDS = 5.0
PORT = 8005
_MOST_STRANGERS = 32
"""Connections at a time that have not said who they are."""
_MOST_EXPECTED = 32
_AGAIN_SECONDS, _MOST_SAID = 60.0, 256
_TAKEN_SECONDS = 2.0
"""An agent that was heard of so recently is there: another one of its name is a mistake."""


class Exchange:
    """
    Args:
        name: of the socket where fronts find it.
    """

    def __init__(self, name: str, token: bytes, lease: float) -> None:
        self._name = name
        self._token = token
        self._lease = lease
        self._agents: dict[str, Agent] = {}
        self._strangers: dict[Link, None] = {}
        """The oldest one first."""
        self._said: dict[str, float] = {}
        self._expected: dict[str, tuple[str, Path, Artifact]] = {}
        """By models' folders."""
        self._lost: dict[str, tuple[float, str]] = {}

    def listen_to_fronts(self) -> None:
        """Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        listener.bind(address(self._name))
        listener.listen(128)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody has dialled; until the connection ends, or the exchange."""
        with suppress(asyncio.CancelledError):  # Which asyncio's callback takes for a fault.
            await self._greet(reader, writer)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        self._strangers[link] = None
        if len(self._strangers) > _MOST_STRANGERS:  # Nobody keeps agents out by saying nothing.
            next(iter(self._strangers)).close()
        try:
            async with asyncio.timeout(handshake.SECONDS):
                welcomed = handshake.welcome(link, self._token, self._lease, self._object)
                name = (await welcomed).name
                await link.drain()
        except (Refused, LinkError, OSError, TimeoutError) as error:
            self._say(f"a connection from {link.address} is refused: {describe(error)}")
            writer.close()
            return
        finally:
            self._strangers.pop(link, None)
        await self._serve(Agent(name, link, self._lease))

    def choose(self, number: int) -> list[Agent] | str:
        """See `Agents`."""
        there = sorted(self._agents.values(), key=lambda each: (each.blocks, each.name))
        if len(there) >= number:
            return there[:number]
        names = f" ({', '.join(sorted(self._agents))})" if there else ""
        lost = "".join(
            f"; {name} was lost {time.monotonic() - at:.0f} s ago: {why}"
            for name, (at, why) in sorted(self._lost.items())
        )
        return (
            f"it needs agents on {number} other hosts, and {len(there)} are connected{names}{lost}"
        )

    def expect(self, spec: RankSpec, folder: Path, artifact: Artifact) -> None:
        """See `Agents`. Of each model its latest version."""
        self._expected.pop(spec.source[1], None)
        self._expected[spec.source[1]] = expected = spec.to_json(), folder, artifact
        if len(self._expected) > _MOST_EXPECTED:
            del self._expected[next(iter(self._expected))]
        for agent in self._agents.values():
            agent.prepare(*expected)

    async def _serve(self, agent: Agent) -> None:
        if before := self._agents.get(agent.name):
            before.link.close()
            before.lose("its agent has connected anew")
        self._agents[agent.name] = agent
        self._lost.pop(agent.name, None)
        for expected in self._expected.values():
            agent.prepare(*expected)
        log.info("agent %s is connected, from %s", agent.name, agent.link.address)
        why = await agent.listen()
        agent.lose(why)
        if self._agents.get(agent.name) is agent:
            del self._agents[agent.name]
            self._lost[agent.name] = time.monotonic(), why
        log.warning("host %s is lost: %s", agent.name, why)

    def _say(self, text: str) -> None:
        """Not again within a minute: nobody fills the log by dialling."""
        now = time.monotonic()
        if now - self._said.get(text, -math.inf) < _AGAIN_SECONDS:
            return
        if len(self._said) >= _MOST_SAID:
            self._said.clear()
        self._said[text] = now
        log.warning("%s", text)

    def _object(self, name: str, versions: Mapping[str, str]) -> str:
        known = self._agents.get(name)
        if known and known.link.silence < _TAKEN_SECONDS:
            return f"an agent named {name} is connected already: give each a --name of its own"
        return difference(versions)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if is_of_this_user(connection):
            Front(connection, self)
        else:
            connection.close()


async def serve(ours: argparse.Namespace, token: bytes) -> None:
    """Until SIGTERM."""
    exchange = Exchange(ours.name, token, ours.lease_seconds)
    exchange.listen_to_fronts()
    encryption = tls.of_exchange(ours)
    server = await asyncio.start_server(exchange.greet, ours.host, ours.port, ssl=encryption)
    log.info("agents may connect to %s:%d", ours.host, server.sockets[0].getsockname()[1])
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m python_mp.agent.exchange_server", description=__doc__
    )
    add = parser.add_argument
    add("name", help="of the socket where fronts find it (PYTHON_MP_EXCHANGE of tritonserver)")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=PORT)
    add("--token-file", type=Path, metavar="FILE", help="else AGENT_TOKEN")
    add("--lease-seconds", type=float, default=LEASE_SECONDS, metavar="S")
    tls.add_to_exchange(parser)
    return parser.parse_args(arguments)


def check(ours: argparse.Namespace, environment: MutableMapping[str, str]) -> bytes:
    """The token, if it can work with these options.

    Raises:
        TokenMissing: it is to be reached from other hosts without one.
        OSError, ValueError: a file cannot be read, or is missing.
    """
    tls.of_exchange(ours)
    local = ipaddress.ip_address(ours.host).is_loopback
    return read_token(ours.token_file, environment, is_local=local)


def main(arguments: Sequence[str] | None = None) -> int:
    ours = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    try:
        asyncio.run(serve(ours, check(ours, os.environ)))
    except (TokenMissing, OSError, ValueError) as error:
        print(f"exchange: {describe(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
