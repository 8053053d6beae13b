"""Proxies in the environment: who is asked through one, and what is said where it is in the way."""

import socketserver
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from tritonclient.utils import InferenceServerException

from clients import proxy
from clients.connection import LOST, Protocol, connect, sentence

NEAR = ("127.0.0.1", "localhost", "[::1]", "127.1.2.3", "a-service-of-compose")
FAR = "far.invalid"
PORT = 1  # nobody listens there


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A proxy that closes every connection, and counts them."""
    for name in (*proxy.VARIABLES, *proxy.EXCEPTIONS):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    times: list[int] = []
    with socketserver.TCPServer(("127.0.0.1", 0), lambda *_: times.append(1)) as server:  # type: ignore[arg-type, return-value]
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield SimpleNamespace(times=times, address=f"127.0.0.1:{server.server_address[1]}")
        server.shutdown()


def failure(protocol: Protocol, host: str) -> str:
    """The sentence of a call to a server that is not there."""
    url = f"{host}:{PORT}"
    with (
        connect(protocol, url) as client,
        pytest.raises((InferenceServerException, *LOST)) as raised,
    ):
        client.get_server_metadata()
    assert isinstance(raised.value, Exception)
    return sentence(raised.value, url)


@pytest.mark.parametrize("host", NEAR)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_what_is_near_is_asked_straight(
    asked: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, protocol: Protocol, host: str
) -> None:
    for variable in proxy.VARIABLES:
        monkeypatch.setenv(variable, f"http://user:secret@{asked.address}")
    assert "cannot be reached; is it running" in failure(protocol, host)
    assert not asked.times


@pytest.mark.parametrize("variable", proxy.VARIABLES)
def test_a_proxy_is_named(
    asked: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://user:secret@{asked.address}")
    said = failure("grpc", FAR)
    assert f"through the proxy {asked.address}, which {variable} names" in said
    assert "secret" not in said
    assert asked.times


@pytest.mark.usefixtures("asked")
def test_sizes_are_not_limited_where_a_proxy_is_kept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy.direct("127.0.0.1:8001") == {}
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    arguments = dict(proxy.direct("127.0.0.1:8001")["channel_args"])
    assert arguments["grpc.max_receive_message_length"] == -1
    assert proxy.direct("far.invalid:8001") == {}
