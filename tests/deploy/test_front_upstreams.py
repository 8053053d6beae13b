"""Whom the front asks: addresses that come and go, dead ones, and what is never sent twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest

from tests.deploy.front import NGINX, SECONDS, SERVICE, Answer, Front, front
from tests.deploy.front_peers import NameServer, Upstream
from tests.support.calls import in_parallel
from tests.support.processes import children, until

INFER = "/v2/models/m/infer"
BODY = b'{"inputs": []}'
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
Start = Callable[..., AbstractContextManager[Front]]


def reply(text: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


@pytest.fixture
def port() -> int:
    with socket.create_server((HOSTS[0], 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def start(program: Callable[[str], str], tmp_path: Path, port: int) -> Start:
    """`with start(names) as front:` asks `names` for the name of its upstreams, all at `port`."""

    def started(names: NameServer | None, **more: str) -> AbstractContextManager[Front]:
        ports = {f"UPSTREAM_{kind}_PORT": str(port) for kind in ("HTTP", "GRPC", "HEALTH")}
        place = {"RESOLVER": names.address} if names else {"UPSTREAM": HOSTS[0]}
        program("openssl")
        return front(program("nginx"), tmp_path / "front", **ports, **place, **more)

    return started


@pytest.fixture
def named(start: Start) -> Iterator[tuple[Front, NameServer]]:
    with NameServer() as names, start(names) as started:
        yield started, names


@pytest.fixture
def upstreams(port: int) -> Iterator[list[Upstream]]:
    """On the first two of HOSTS; they answer with their address."""
    both = [Upstream(host, port, reply(host)) for host in HOSTS[:2]]
    with both[0], both[1]:
        yield both


def infer(front: Front) -> Answer:
    return front.send("POST", INFER, BODY)


def who(front: Front, times: int = 30) -> set[str]:
    """Who answered; all must."""
    answers = [infer(front) for _ in range(times)]
    assert {answer.status for answer in answers} == {200}
    return {answer.body.decode() for answer in answers}


def grpc_infer(front: Front, message: bytes | None = None) -> grpc.RpcError:
    request = ModelInferRequest(model_name="m").SerializeToString()
    with grpc.insecure_channel(front.grpc_url) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"{SERVICE}/ModelInfer")(message or request, timeout=20)
    return refused.value


@pytest.mark.usefixtures("upstreams")
def test_a_dead_address_costs_no_request(named: tuple[Front, NameServer]) -> None:
    """HOSTS[2] refuses connections, and each time the next one is asked."""
    front, names = named
    names.addresses = HOSTS
    assert who(front) == set(HOSTS[:2])
    assert any("," in line["upstream"] for line in front.log), "the dead one was never asked"


@pytest.mark.usefixtures("upstreams")
def test_addresses_come_and_go_without_a_reload(named: tuple[Front, NameServer]) -> None:
    front, names = named
    assert infer(front).status == 503
    for addresses in (HOSTS[:1], HOSTS[1:2], HOSTS[:2]):
        names.addresses = addresses
        until(lambda addresses=addresses: infer(front).body.decode() in addresses)  # type: ignore[misc]
        until(lambda addresses=addresses: who(front) == set(addresses))  # type: ignore[misc]
    names.addresses = ()
    until(lambda: infer(front).status == 503)


def test_nobody_there_is_said(named: tuple[Front, NameServer]) -> None:
    """No address at all; and two that refuse."""
    front, names = named
    for addresses in ((), HOSTS[:2]):
        names.addresses = addresses
        for path, method in ((INFER, "POST"), ("/v2", "GET"), ("/v2/health/ready", "GET")):
            answer = front.send(method, path, BODY if method == "POST" else None)
            assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
            assert answer.error == "No Triton can be reached; try again."
        error = grpc_infer(front)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert error.details() == "No Triton can be reached; try again."
    assert front.send("GET", "/healthz").status == 200


@pytest.mark.parametrize("hosts", [1, 2])
def test_what_was_sent_is_not_sent_again(start: Start, port: int, hosts: int) -> None:
    """Upstreams that take a request and close: one copy arrives, though there is another one."""
    taking = [Upstream(host, port) for host in HOSTS[:2]]
    with NameServer(*HOSTS[:hosts]) as names, taking[0], taking[1], start(names) as front:
        answer = infer(front)
        assert answer.status == 502
        assert "may have been computed" in answer.error
        assert [request.count(BODY) for each in taking for request in each.requests] == [1]
        error = grpc_infer(front)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "may have been computed" in error.details()
        assert sum(len(each.requests) for each in taking) == 2


def test_a_late_answer(start: Start, port: int) -> None:
    with Upstream(HOSTS[0], port, delay=4.0), start(None, UPSTREAM_TIMEOUT="1s") as front:
        assert infer(front).status == 504
        assert grpc_infer(front).code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_one_that_is_ready_is_enough(start: Start, port: int) -> None:
    """An upstream that drains says 503: another one is asked; its own sentence where all do."""
    draining = Upstream(HOSTS[0], port, reply("{}", "503 Service Unavailable"))
    with NameServer(HOSTS[0]) as names, draining, start(names) as front:
        assert front.send("GET", "/v2/health/ready").status == 503
        with Upstream(HOSTS[1], port, reply("{}")) as ready:
            names.addresses = HOSTS[:2]
            until(lambda: bool(front.send("GET", "/v2/health/ready") and ready.requests))
            assert {front.send("GET", "/v2/health/ready").status for _ in range(20)} == {200}
        assert ready.requests[0].startswith(b"GET /ready ")


READY, DRAINING = reply("{}"), reply("{}", "503 Service Unavailable")


@pytest.fixture
def polled(
    start: Start, upstreams: list[Upstream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Front, list[Upstream]]]:
    """A front that knows the addresses of both upstreams from the system as well."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "getent").write_text(f"#!/bin/sh\nprintf '%s\\n' {' '.join(HOSTS[:2])}\n")
    (programs / "getent").chmod(0o700)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with NameServer(*HOSTS[:2]) as names, start(names) as front:
        yield front, upstreams


def test_those_that_are_ready_are_asked(polled: tuple[Front, list[Upstream]]) -> None:
    """Neither one that drains or starts, nor one that hangs; where none is ready, any."""
    front, (one, other) = polled
    for one.ready, other.ready, asked in (
        (READY, DRAINING, HOSTS[:1]),
        (b"", READY, HOSTS[1:2]),
        (READY, READY, HOSTS[:2]),
        (DRAINING, DRAINING, HOSTS[:2]),
    ):
        until(lambda asked=asked: who(front) == set(asked))  # type: ignore[misc]
        assert who(front) == set(asked)


def test_a_ready_one_that_dies_costs_no_request(polled: tuple[Front, list[Upstream]]) -> None:
    front, (one, other) = polled
    one.ready, other.ready = READY, DRAINING
    until(lambda: who(front) == set(HOSTS[:1]))
    one.__exit__(None, None, None)
    assert who(front, 10) == set(HOSTS[1:2])


def watcher(front: Front) -> int:
    """The process of peers.sh."""
    [again] = [pid for pid in front.workers if b"again.sh" in command_of(pid)]
    until(lambda: bool(children(again)))
    return children(again)[0]


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_peers_is_started_again(polled: tuple[Front, list[Upstream]]) -> None:
    front, (one, other) = polled
    one.ready, other.ready = READY, DRAINING
    until(lambda: who(front) == set(HOSTS[:1]))
    os.kill(watcher(front), signal.SIGKILL)
    one.ready, other.ready = DRAINING, READY
    until(lambda: who(front) == set(HOSTS[1:2]))
    assert "peers.sh ended with 137" in front.errors


def test_what_was_said_long_ago_does_not_count(polled: tuple[Front, list[Upstream]]) -> None:
    """A peers.sh that hangs: all addresses are asked, until it goes on."""
    front, (one, other) = polled
    one.ready, other.ready = READY, DRAINING
    until(lambda: who(front) == set(HOSTS[:1]))
    stopped = watcher(front)
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: who(front) == set(HOSTS[:2]))
    os.kill(stopped, signal.SIGCONT)
    until(lambda: who(front) == set(HOSTS[:1]))


def test_what_cannot_be_started_ends_the_front() -> None:
    """again.sh, to which the system gives no process any more."""
    program = ["sh", str(NGINX / "again.sh")]
    if os.getuid() == 0:  # whom such a limit does not hold back
        program = ["setpriv", "--reuid=65533", "--clear-groups", *program]
    with subprocess.Popen(["sleep", "60"], user=os.getuid() or 65533) as nginx:
        command = ["prlimit", "--nproc=1", *program, str(nginx.pid), "true"]
        subprocess.run(command, capture_output=True)
        assert nginx.wait(SECONDS) == -signal.SIGQUIT


def test_only_known_headers_go_on(start: Start, port: int) -> None:
    known = {"X-Request-Id": "mine-1", "traceparent": "00-1-2-01"}
    more = {"triton-admin": "guess", "Cookie": "a=b", "Accept-Encoding": "gzip", "X-Other": "1"}
    more |= {"Upgrade": "websocket", "Connection": "upgrade", "Content-Type": "text/plain"}
    with Upstream(HOSTS[0], port, reply("")) as upstream, start(None) as front:
        answer = front.send("POST", INFER + "?query=1", BODY, known | more)
        assert answer.headers["x-request-id"] == "mine-1"
        front.send("POST", INFER, BODY, {"X-Request-Id": "not one\x7f"})
    head, _, body = upstream.requests[0].partition(b"\r\n\r\n")
    assert body == BODY
    lines = head.decode().split("\r\n")
    assert lines[0] == f"POST {INFER} HTTP/1.1"
    headers = dict(line.split(": ") for line in lines[1:])
    assert headers.pop("Host") == f"{HOSTS[0]}:{port}"
    assert headers == known | {"Connection": "close", "Content-Length": str(len(BODY))}
    assert b"not one" not in upstream.requests[1]
    assert b"X-Request-Id: " in upstream.requests[1]


def test_guesses_at_the_token_are_slowed_down(start: Start, port: int) -> None:
    with Upstream(HOSTS[0], port, reply("")) as upstream, start(None, ADMIN_RATE="1r/s") as front:
        headers = {"triton-admin": "guess"}
        answers = [front.send("GET", "/v2/logging", headers=headers).status for _ in range(40)]
        assert answers[:20] == [403] * 20
        assert answers[30:] == [429] * 10
        assert infer(front).status == 200
    assert len(upstream.requests) == 1


def test_requests_in_hand_are_limited(start: Start, port: int) -> None:
    with Upstream(HOSTS[0], port, reply(""), delay=1.0), start(None, MAX_REQUESTS="2") as front:
        statuses = in_parallel(6, lambda _: infer(front).status)
    assert statuses.count(429) == 4
