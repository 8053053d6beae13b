"""The hub, on Triton's host: agents of other hosts dial it, fronts ask it for ranks there.

    python -m python_mp.agent.hub RUNTIME --host ADDRESS --port PORT

It relays what fronts and those ranks tell each other, and has no part in it. When it ends, so do
the ranks on all other hosts, and their fronts start anew once it is back.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..model.errors import describe
from ..wire.departures import address
from ..wire.hub_line import NAME, is_of_this_user
from . import handshake, tls
from .agents import Agent
from .fronts import Front
from .handshake import Refused
from .link import Link, LinkError
from .shared_token import TokenMissing, read_token
from .versions import difference

log = logging.getLogger("hub")

LEASE_SECONDS = 5.0
PORT = 8005
_MOST_STRANGERS = 32
"""Connections at a time that have not said who they are."""
_TAKEN_SECONDS = 2.0
"""An agent that was heard of so recently is there: another one of its name is a mistake."""


class Hub:
    """
    Args:
        runtime: the run's private folder, where fronts find it.
    """

    def __init__(self, runtime: Path, token: bytes, lease: float) -> None:
        self._runtime = runtime
        self._token = token
        self._lease = lease
        self._agents: dict[str, Agent] = {}
        self._strangers = 0
        self._lost: dict[str, tuple[float, str]] = {}
        self._fronts: list[Front] = []

    def listen_to_fronts(self) -> None:
        """Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        (self._runtime / NAME).unlink(missing_ok=True)
        with address(self._runtime, NAME) as path:
            listener.bind(path)
        listener.listen(128)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody has dialled; until the connection ends."""
        link = Link(reader, writer)
        if self._strangers >= _MOST_STRANGERS:
            link.close()
            return
        self._strangers += 1
        try:
            async with asyncio.timeout(handshake.SECONDS):
                welcomed = handshake.welcome(link, self._token, self._lease, self._object)
                name = (await welcomed).name
                await link.drain()
        except (Refused, LinkError, OSError, TimeoutError) as error:
            log.warning("a connection from %s is refused: %s", link.address, describe(error))
            writer.close()
            return
        finally:
            self._strangers -= 1
        await self._serve(Agent(name, link, self._lease))

    def choose(self, number: int) -> list[Agent] | str:
        """So many agents, those with the least to do; or why there are too few."""
        there = sorted(self._agents.values(), key=lambda each: (each.blocks, each.name))
        if len(there) >= number:
            return there[:number]
        names = f" ({', '.join(sorted(self._agents))})" if there else ""
        lost = "".join(
            f"; {name} was lost {time.monotonic() - at:.0f} s ago: {why}"
            for name, (at, why) in sorted(self._lost.items())
        )
        return f"it needs agents on {number} other hosts, and {len(there)} are connected{names}{lost}"

    async def _serve(self, agent: Agent) -> None:
        if before := self._agents.get(agent.name):
            before.link.close()
            before.lose("its agent has connected anew")
        self._agents[agent.name] = agent
        self._lost.pop(agent.name, None)
        log.info("agent %s is connected, from %s", agent.name, agent.link.address)
        why = await agent.listen()
        agent.lose(why)
        if self._agents.get(agent.name) is agent:
            del self._agents[agent.name]
            self._lost[agent.name] = time.monotonic(), why
        log.warning("host %s is lost: %s", agent.name, why)

    def _object(self, name: str, versions: Mapping[str, str]) -> str:
        known = self._agents.get(name)
        if known and known.silence < _TAKEN_SECONDS:
            return f"an agent named {name} is connected already: give each a --name of its own"
        return difference(versions)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if is_of_this_user(connection):
            Front(connection, self.choose)
        else:
            connection.close()


async def serve(ours: argparse.Namespace, token: bytes) -> None:
    """Until SIGTERM."""
    hub = Hub(ours.runtime, token, ours.lease_seconds)
    hub.listen_to_fronts()
    encryption = tls.of_hub(ours)
    server = await asyncio.start_server(hub.greet, ours.host, ours.port, ssl=encryption)
    log.info("agents may connect to %s:%d", ours.host, server.sockets[0].getsockname()[1])
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m python_mp.agent.hub", description=__doc__)
    add = parser.add_argument
    add("runtime", type=Path, help="the run's private folder")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=PORT)
    add("--token-file", type=Path, metavar="FILE", help="else AGENT_TOKEN")
    add("--lease-seconds", type=float, default=LEASE_SECONDS, metavar="S")
    tls.add_to_hub(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    ours = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    try:
        local = ipaddress.ip_address(ours.host).is_loopback
        asyncio.run(serve(ours, read_token(ours.token_file, os.environ, is_local=local)))
    except (TokenMissing, OSError, ValueError) as error:
        print(f"hub: {describe(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
