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

from ..model.config_json import parse as parse_config
from ..model.errors import PythonMpError, describe
from ..model.rank_spec import Source
from ..wire.exchange_line import address
from ..wire.sockets import is_of_this_user
from . import handshake, tls
from .agents import Agent
from .contents import Artifact
from .door import Door
from .fronts import Front
from .link import Link
from .shared_token import TokenMissing, read_token
from .versions import difference

log = logging.getLogger("exchange")

LEASE_SECONDS = 5.0
PORT = 8005
_LEAST_LEASE = 1.0
_MOST_EXPECTED, _MOST_LOST = 32, 8
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
        self._expected: dict[str, tuple[Source, Path, Artifact]] = {}
        """By models' folders."""
        self._lost: dict[str, tuple[float, str]] = {}
        """Those of late, the last one last."""
        self._tasks: set[asyncio.Task[None]] = set()

    def listen_to_fronts(self) -> None:
        """Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        listener.bind(address(self._name))
        listener.listen(128)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def greet(self, link: Link) -> Agent:
        """Raises Refused or LinkError."""
        welcomed = await handshake.welcome(link, self._token, self._lease, self._object)
        return Agent(welcomed.name, link, self._lease)

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

    def expect(self, source: Source) -> None:
        """See `Agents`. Of each model its latest version."""
        task = asyncio.create_task(self._expect(source))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _expect(self, source: Source) -> None:
        try:
            folder = parse_config(*source).folder
            expected = source, folder, await asyncio.to_thread(Artifact.of, folder)
        except (OSError, PythonMpError) as error:
            log.warning("a model cannot be announced to other hosts: %s", describe(error))
            return
        self._expected.pop(source[1], None)
        self._expected[source[1]] = expected
        if len(self._expected) > _MOST_EXPECTED:
            del self._expected[next(iter(self._expected))]
        for agent in self._agents.values():
            agent.prepare(*expected)

    async def serve(self, agent: Agent) -> None:
        """Until its connection ends."""
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
            if len(self._lost) > _MOST_LOST:
                del self._lost[next(iter(self._lost))]
        log.warning("host %s is lost: %s", agent.name, why)

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
    door = Door(tls.of_exchange(ours), exchange.greet, exchange.serve)
    listener = _listener(ours.host, ours.port)
    log.info("agents may connect to %s:%d", ours.host, listener.getsockname()[1])
    watching = asyncio.create_task(door.watch(listener))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, watching.cancel)
    with suppress(asyncio.CancelledError), listener:
        await watching


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=128)
    listener.setblocking(False)
    return listener


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
        OSError, ValueError: a file cannot be read, or is missing, or no lease can be so short.
    """
    if not _LEAST_LEASE <= ours.lease_seconds < math.inf:
        raise ValueError(f"a lease is at least {_LEAST_LEASE:g} s, not {ours.lease_seconds:g}")
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
