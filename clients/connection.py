"""A client of either protocol: with TLS where its address says so, and patient."""

import argparse
import os
import ssl
from pathlib import Path
from typing import Any, Literal

import tenacity
import tritonclient.grpc
import tritonclient.http
from geventhttpclient.response import HTTPParseError
from tritonclient.utils import InferenceServerException

from clients import proxy

Protocol = Literal["grpc", "http"]
MODULES: dict[Protocol, Any] = {"grpc": tritonclient.grpc, "http": tritonclient.http}
LOST = (OSError, HTTPParseError)
"""What tritonclient raises, besides InferenceServerException, where a server is gone."""
# Not computed, or by a server that died over it; models are pure functions, so ask again.
AGAIN = ("StatusCode.UNAVAILABLE", "502", "503")
ATTEMPTS = 5
FIRST_WAIT, LONGEST_WAIT = 0.1, 2.0  # seconds


def default_url(protocol: Protocol) -> str:
    """host:port, from HOST, GRPC_PORT and HTTP_PORT where they are set."""
    port = {"grpc": "8001", "http": "8000"}[protocol]
    host = os.environ.get("HOST", "127.0.0.1").replace("0.0.0.0", "127.0.0.1")
    return f"{host}:{os.environ.get(f'{protocol.upper()}_PORT', port)}"


def connect(protocol: Protocol, url: str, ca: Path | None = None) -> Any:
    """tritonclient's client of this protocol, for one thread.

    Args:
        url: host:port, or https://host:port or grpcs://host:port for TLS.
        ca: file, PEM, of what signed the server's certificate; None for the system's own.
    """
    scheme, _, address = url.rpartition("://")
    direct = proxy.direct(address) if protocol == "grpc" else {}
    if scheme not in ("https", "grpcs"):
        return MODULES[protocol].InferenceServerClient(address, **direct)
    authority = None if ca is None else str(ca)
    if protocol == "grpc":
        return tritonclient.grpc.InferenceServerClient(
            address, ssl=True, root_certificates=authority, **direct
        )
    options = {} if ca is None else {"ca_certs": authority}
    return tritonclient.http.InferenceServerClient(address, ssl=True, ssl_options=options)


def may_be_asked_again(error: BaseException) -> bool:
    """Whether the same request may have an answer a moment later."""
    if isinstance(error, InferenceServerException):
        return error.status() in AGAIN
    return isinstance(error, LOST) and not isinstance(error, ssl.SSLError)


patient = tenacity.retry(
    retry=tenacity.retry_if_exception(may_be_asked_again),
    stop=tenacity.stop_after_attempt(ATTEMPTS),
    wait=tenacity.wait_random_exponential(FIRST_WAIT, LONGEST_WAIT),
    reraise=True,
)
"""Decorates a call that is made again, some times and ever later, while no server computes it."""


def sentence(error: Exception, url: str) -> str:
    """What to tell a user of an error of `infer`."""
    address = url.rpartition("://")[2]
    if isinstance(error, InferenceServerException) and error.status() not in AGAIN:
        return str(error.message()).removeprefix("[request id: <id_unknown>] ")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"the certificate of the server at {url} is not trusted; name its signer with --ca"
    if is_grpc(error) and not proxy.is_near(address) and (way := proxy.before(address)):
        return (
            f"the server at {url} cannot be reached through the proxy {way.address}, which"
            f" {way.variable} names; if it needs none, add its host to no_proxy"
        )
    return f"the server at {url} cannot be reached; is it running (make serve)?"


def is_grpc(error: Exception) -> bool:
    """Whether tritonclient had it from gRPC."""
    status = error.status() if isinstance(error, InferenceServerException) else None
    return str(status).startswith("StatusCode")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which server, and how it is asked."""
    add = parser.add_argument
    add("--protocol", choices=list(MODULES), default="grpc")
    add(
        "--url",
        help="host:port (default: HOST, GRPC_PORT, HTTP_PORT); https:// or grpcs:// for TLS",
    )
    add("--ca", type=Path, metavar="PEM", help="what signed the server's certificate")
    add("--concurrency", type=positive, default=4, help="requests in flight")


def positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
