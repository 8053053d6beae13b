"""The exchange, to which agents of other hosts connect, beside a server, which starts it anew."""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Self

from python_mp.agent import exchange_server
from python_mp.agent.shared_token import TokenMissing
from python_mp.machine.net import Net
from python_mp.wire.exchange_line import VARIABLE
from server.endpoints import Endpoints
from server.errors import ServerError
from server.process.beside import Beside, spawn

PREFIX = "agent_"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that begin with --agent; all but the first three are the exchange's own."""
    add = parser.add_argument
    add("--agents", action="store_true", help="let agents connect, though no model has hosts yet")
    add("--agent-host", help="address to listen on for agents of other hosts (AGENT_HOST)")
    add("--agent-port", type=int, metavar="PORT")
    add("--agent-token-file", metavar="FILE", help="what they must know; else AGENT_TOKEN")
    add("--agent-lease-seconds", metavar="S", help="of silence after which a host is lost")
    add("--agent-tls-certificate", metavar="PEM", help="encrypts their connections")
    add("--agent-tls-key", metavar="PEM")
    add("--agent-tls-client-ca", metavar="PEM", help="whose certificates agents must have")


def options(ours: argparse.Namespace) -> list[str]:
    """Of the exchange, as they were given."""
    names = ("token_file", "lease_seconds", "tls_certificate", "tls_key", "tls_client_ca")
    given = {name: getattr(ours, PREFIX + name) for name in names}
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value]


class AgentsExchange(Beside):
    """A context in which `python -m python_mp.agent.exchange_server` runs."""

    KILL_AFTER = 2.0

    def __init__(
        self,
        name: str,
        endpoints: Endpoints,
        options: list[str],
        net: Net,
        say: Callable[[str], None],
    ) -> None:
        super().__init__("the exchange", net, say)
        self._socket = name
        self._endpoints = endpoints
        self._options = options

    def __enter__(self) -> Self:
        """Raises ServerError where it cannot work: by its port, its token or its certificate."""
        replace(self._endpoints, host=self._endpoints.agent_host).listen("agents").close()
        ours = exchange_server.parse([self._socket, *self._where(), *self._options])
        try:
            exchange_server.check(ours, dict(os.environ))
        except (TokenMissing, OSError, ValueError) as error:
            raise ServerError(f"agents cannot be let in: {error}") from error
        self._say(f"agents connect to {self._endpoints.agents_url}")
        return super().__enter__()

    def start(self) -> subprocess.Popen[str]:
        order = self._socket, *self._where(), *self._options
        return spawn("python_mp.agent.exchange_server", *order, output=None)

    def _where(self) -> tuple[str, str]:
        return f"--host={self._endpoints.agent_host}", f"--port={self._endpoints.agents}"


def new_name() -> str:
    """Of a socket where nobody else listens."""
    return f"python_mp-exchange-{secrets.token_hex(8)}"


def environment(name: str) -> Mapping[str, str]:
    """By which fronts find it."""
    return {VARIABLE: name}
