"""Proxies that the environment names. gRPC asks them for everything that `no_proxy` does not name,
this machine too; tritonclient's HTTP asks none."""

import ipaddress
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

# In the order in which gRPC looks: https://grpc.github.io/grpc/core/md_doc_environment_variables.html
VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")

SIZES = ("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)
"""Of messages, as tritonclient has them where it is given no `channel_args`."""


@dataclass(frozen=True)
class Proxy:
    """What stands between gRPC and a server."""

    variable: str
    address: str


def before(address: str) -> Proxy | None:
    """The proxy that gRPC would ask for host:port by itself."""
    variable = next((name for name in VARIABLES if os.environ.get(name)), None)
    if variable is None:
        return None
    exceptions = next((os.environ[name] for name in EXCEPTIONS if os.environ.get(name)), "")
    if any(_covers(each.strip(), _host(address)) for each in exceptions.split(",")):
        return None
    place = urlsplit(os.environ[variable])
    return Proxy(variable, f"{place.hostname}:{place.port}" if place.port else str(place.hostname))


def is_near(address: str) -> bool:
    """Whether host:port is on this machine, or has a name that only this network knows, such as a
    service of compose: no proxy can help to get there."""
    host = _host(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return "." not in host


def direct(address: str) -> dict[str, Any]:
    """Arguments for tritonclient's gRPC client of host:port that keep out a proxy of no use."""
    if before(address) is None or not is_near(address):
        return {}
    return {"channel_args": [("grpc.enable_http_proxy", 0), *SIZES]}


def _covers(exception: str, host: str) -> bool:
    """As gRPC has it: the end of a name, or a network."""
    if exception and host.endswith(exception):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(exception, strict=False)
    except ValueError:
        return False


def _host(address: str) -> str:
    return urlsplit(f"//{address}").hostname or ""
