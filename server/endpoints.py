"""Where the server listens."""

import errno
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from server.errors import PortError

VARIABLES = {
    "http": "HTTP_PORT",
    "grpc": "GRPC_PORT",
    "metrics": "METRICS_PORT",
    "health": "HEALTH_PORT",
    "openai": "OPENAI_PORT",
    "agents": "AGENT_PORT",
}
BACKLOG = 16
TRITONS = ("http", "grpc", "metrics")
EVERYBODY = "255.255.255.255"


@dataclass(frozen=True)
class Endpoints:
    """One address for all ports: three of Triton's, the watcher's own, for health, and the
    gateway's, for OpenAI's interface; and another one for the port to which agents of other hosts
    connect.

    Loopback unless told otherwise: Triton asks nobody.
    """

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    health: int = 8003
    openai: int = 8004
    agents: int = 8005
    agent_host: str = "127.0.0.1"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Endpoints":
        """Defaults, overridden by HOST, AGENT_HOST, HTTP_PORT, GRPC_PORT, METRICS_PORT,
        HEALTH_PORT, OPENAI_PORT and AGENT_PORT.

        Raises:
            PortError: a variable that holds no port number.
        """
        default = cls()
        ports = {
            name: _port(variable, environment.get(variable, str(getattr(default, name))))
            for name, variable in VARIABLES.items()
        }
        host = environment.get("HOST") or default.host
        agents = environment.get("AGENT_HOST") or default.agent_host
        return cls(host=host, agent_host=agents, **ports)

    @classmethod
    def free(cls, host: str = "127.0.0.1") -> "Endpoints":
        """Ports that nobody listened on a moment ago."""
        listeners = [_listener(host, 0) for _ in VARIABLES]
        ports = [listener.getsockname()[1] for listener in listeners]
        for listener in listeners:
            listener.close()
        return cls(host, *ports)

    def resolved(self) -> "Endpoints":
        """With the number of a host that is given by its name, which Triton does not look up: its
        HTTP would listen on 255.255.255.255, and say nothing.

        Raises:
            PortError: there is no such host, or Triton cannot listen on it.
        """
        host = self.host.removeprefix("[").removesuffix("]")
        try:
            number = str(_resolve(host, 0)[-1][0])
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise PortError(f"HOST={self.host} is no address of this machine: {why}") from error
        found = ipaddress.ip_address(number)
        address = getattr(found, "ipv4_mapped", None) or found
        if address.version == 6 and address.is_link_local:
            raise PortError(f"HOST={self.host} holds for one network only, which Triton cannot say")
        if address.is_multicast or str(address) == EVERYBODY:
            raise PortError(f"HOST={self.host} is no machine's own address: nobody could connect")
        return replace(self, host=str(address))

    @property
    def contact(self) -> str:
        """The host to connect to: a server that listens everywhere is reached on loopback."""
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return _in_url(reachable)

    @property
    def http_url(self) -> str:
        """host:port, as tritonclient.http takes it."""
        return f"{self.contact}:{self.http}"

    @property
    def grpc_url(self) -> str:
        """host:port, as tritonclient.grpc takes it."""
        return f"{self.contact}:{self.grpc}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus finds the metrics."""
        return f"http://{self.contact}:{self.metrics}/metrics"

    @property
    def health_url(self) -> str:
        """Where /live, /ready and /status are."""
        return f"http://{self.contact}:{self.health}"

    @property
    def openai_url(self) -> str:
        """What clients of OpenAI's interface take as their base URL."""
        return f"http://{self.contact}:{self.openai}/v1"

    @property
    def agents_url(self) -> str:
        """host:port, as an agent's --connect takes it."""
        return f"{_in_url(self.agent_host)}:{self.agents}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(_resolve(self.host, 0)[-1][0]).is_loopback

    def options(self) -> list[str]:
        """Those that are Triton's, as options of tritonserver."""
        http = f"ipv6:{self.host}" if ":" in self.host else self.host
        hosts = dict.fromkeys(TRITONS, http) | {"grpc": _in_url(self.host)}
        return [
            option
            for name in TRITONS
            for option in (
                f"--{name}-address={hosts[name]}",
                f"--{name}-port={getattr(self, name)}",
            )
        ]

    def check(self) -> None:
        """Raises PortError unless all differ and Triton's can be listened on."""
        seen: dict[int, str] = {}
        for name, variable in VARIABLES.items():
            port = getattr(self, name)
            if port in seen:
                raise PortError(f"{seen[port]} and {variable} are both {port}; they must differ")
            seen[port] = variable
        for name in TRITONS:
            self.listen(name).close()

    def listen(self, name: str) -> socket.socket:
        """A socket that listens on this port; raises PortError if there can be none."""
        port = getattr(self, name)
        try:
            return _listener(self.host, port)
        except OSError as error:
            raise PortError(_sentence(self.host, port, VARIABLES[name], error)) from error


def _port(variable: str, value: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", value) or not 0 < int(value) < 65536:
        raise PortError(f"{variable} must be a port number from 1 to 65535, not {value[:20]!r}")
    return int(value)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _resolve(host: str, port: int) -> tuple[Any, ...]:
    """IPv4 first, which is what clients try who only know the name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return min(found, key=lambda each: each[0] != socket.AF_INET)


def _listener(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = _resolve(host, port)
    listener = socket.socket(family, kind, protocol)
    try:
        # As tritonserver does: connections of a server that just ended are not in the way.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _sentence(host: str, port: int, variable: str, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"HOST={host} is no address of this machine: {error.strerror}"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another one with {variable}=..."
    return f"cannot listen on port {port} of {host} (HOST, {variable}): {error.strerror}"
