"""The watcher's pages, asked by clients of every kind."""

import itertools
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from python_mp.machine.net import Net
from server.pages import exposition, health
from server.pages.health import Health
from tests.support.processes import until

SECRET = "secret-secret"
STATUS: dict[str, Any] = {}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def port(said: list[str]) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    number = listener.getsockname()[1]
    before = set(threading.enumerate())
    with Health(listener, SECRET, Net(say=said.append)) as pages:
        pages.tell(live=True, ready={"ready": False, "reason": "it is starting"}, status=STATUS)
        yield number
    assert set(threading.enumerate()) <= before
    with pytest.raises(OSError, match="refused"):
        connect(number)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


def ask(port: int, request: bytes, *, ends: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Of a client that closes its half of the connection, or does not."""
    with connect(port) as connection:
        connection.sendall(request)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ") for line in lines), content


@pytest.mark.parametrize("name", ["triton-admin", "TRITON-ADMIN"])
@pytest.mark.parametrize(("given", "code"), [(SECRET, 200), ("guess", 403), ("", 403), ("é", 403)])
def test_status_wants_the_token(name: str, given: str, code: int, port: int) -> None:
    request = f"GET /status HTTP/1.1\r\n{name}: {given}\r\n\r\n".encode("latin-1")
    assert ask(port, request)[0] == code


@pytest.mark.parametrize("junk", [b"", b"\n\n", b"\0" * 100, b"GET\r\n\r\n", b"x" * (1 << 20)])
def test_what_is_no_request(junk: bytes, port: int, said: list[str]) -> None:
    with connect(port) as connection:
        try:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
        except OSError:  # it hung up already
            pass
    assert ask(port, b"GET /live HTTP/1.1\r\n\r\n")[0] == 200
    assert said == []


@pytest.mark.parametrize(
    "start", [b"", b"G", b"GET /live HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\n\r\n"]
)
def test_hundreds_of_slow_clients_keep_nobody_waiting(start: bytes, port: int) -> None:
    """Those that send a byte now and then, too, and those that take no answer."""
    slow = []
    for _ in range(3 * health.CONNECTIONS):
        slow.append(connect(port))
        slow[-1].sendall(start)
    for number in range(20):
        for connection in slow[number::20]:
            try:
                connection.sendall(b"X")
            except ConnectionError:
                continue
        assert ask(port, b"GET /live HTTP/1.1\r\n\r\n")[0] == 200
    for connection in slow:
        connection.close()


def test_metrics_that_fail(port: int, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(exposition.Metrics, "page", lambda _: 1 / 0)
        assert ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")[0] == 503
        assert ask(port, b"GET /live HTTP/1.1\r\n\r\n")[0] == 200
    until(lambda: ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")[0] == 200)
    assert said[0].startswith("error: the metrics page: ZeroDivisionError")


PATHS = {"/live": 200, "/ready": 503, "/metrics": 200, "/status": 403, "/": 404, "/live/": 404}


@pytest.mark.parametrize("path", PATHS)
def test_every_form_of_a_probe(path: str, port: int) -> None:
    forms = ("{}", "{}?verbose=1&x=/ready", "{}?a=http://b/c", "http://any.host:8003{}")
    ways = itertools.product(forms, ("GET", "HEAD"), (b"\r\n", b"\n"), (False, True))
    for form, method, end, ends in ways:
        line = f"{method} {form.format(path)} HTTP/1.1".encode()
        code, headers, content = ask(port, line + end + b"Host: x" + end + end, ends=ends)
        assert code == PATHS[path]
        length = int(headers["Content-Length"])
        assert length > 0
        assert len(content) == (length if method == "GET" else 0)
    assert ask(port, f"POST {path} HTTP/1.1\r\nContent-Length: 3\r\n\r\nxxx".encode())[0] == 501
