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

from tests.deploy.conftest import NewFront
from tests.deploy.front import NGINX, SECONDS, Answer, Front, at
from tests.deploy.front_peers import NameServer, Upstream
from tests.support.calls import in_parallel
from tests.support.processes import children, until

INFER = "/v2/models/m/infer"
BODY = b'{"inputs": []}'
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
NOBODY = "No Triton can be reached; try again."
Start = Callable[..., AbstractContextManager[Front]]
Polled = tuple[Front, list[Upstream]]


def reply(text: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


READY, DRAINING = reply("{}"), reply("{}", "503 Service Unavailable")


@pytest.fixture
def port() -> int:
    with socket.create_server((HOSTS[0], 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def start(new_front: NewFront, tmp_path: Path, port: int) -> Start:
    """`with start(names) as front:` asks `names` for the name of its upstreams, all at `port`."""

    def started(names: NameServer | None, **more: str) -> AbstractContextManager[Front]:
        name = {"UPSTREAM": "triton", "RESOLVER": names.address} if names else {}
        return new_front(tmp_path / "front", **at(port) | name, **more)

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


@pytest.mark.usefixtures("upstreams")
def test_addresses_come_and_go_without_a_reload(named: tuple[Front, NameServer]) -> None:
    """One that refuses connections costs no request: the next one is asked."""
    front, names = named
    assert infer(front).status == 503
    for addresses in (HOSTS[:1], HOSTS[1:2], HOSTS):
        names.addresses, living = addresses, {*addresses} & {*HOSTS[:2]}
        until(lambda living=living: infer(front).body.decode() in living)  # type: ignore[misc]
        until(lambda living=living: who(front) == living)  # type: ignore[misc]
    until(lambda: bool(who(front)) and any("," in line["upstream"] for line in front.log))
    names.addresses = ()
    until(lambda: infer(front).status == 503)


def test_nobody_there_is_said(named: tuple[Front, NameServer]) -> None:
    """No address at all; and two that refuse."""
    front, names = named
    for addresses in ((), HOSTS[:2]):
        names.addresses = addresses
        for answer in (
            infer(front),
            front.send("GET", "/v2"),
            front.send("GET", "/v2/health/ready"),
        ):
            assert (answer.status, answer.error) == (503, NOBODY)
        assert front.call() == (grpc.StatusCode.UNAVAILABLE, NOBODY)
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
        code, sentence = front.call()
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "may have been computed" in sentence
        assert sum(len(each.requests) for each in taking) == 2


def test_a_late_answer(start: Start, port: int) -> None:
    with Upstream(HOSTS[0], port, delay=4.0), start(None, UPSTREAM_TIMEOUT="1s") as front:
        assert infer(front).status == 504
        assert front.call()[0] == grpc.StatusCode.DEADLINE_EXCEEDED


def test_one_that_is_ready_is_enough(start: Start, port: int) -> None:
    """An upstream that drains says 503: another one is asked; its own sentence where all do."""
    draining = Upstream(HOSTS[0], port, DRAINING)
    with NameServer(HOSTS[0]) as names, draining, start(names) as front:
        assert front.send("GET", "/v2/health/ready").status == 503
        with Upstream(HOSTS[1], port, READY) as ready:
            names.addresses = HOSTS[:2]
            until(lambda: bool(front.send("GET", "/v2/health/ready") and ready.requests))
            assert {front.send("GET", "/v2/health/ready").status for _ in range(20)} == {200}
        assert ready.requests[0].startswith(b"GET /ready ")


@pytest.fixture
def polled(
    start: Start, upstreams: list[Upstream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Polled]:
    """A front that knows the addresses of both upstreams from the system as well."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "getent").write_text(f"#!/bin/sh\nprintf '%s\\n' {' '.join(HOSTS[:2])}\n")
    (programs / "getent").chmod(0o700)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with NameServer(*HOSTS[:2]) as names, start(names) as front:
        yield front, upstreams


def test_those_that_are_ready_are_asked(polled: Polled) -> None:
    """Neither one that drains or starts, nor one that hangs; where none is ready, any. And a ready
    one that dies costs no request."""
    front, (one, other) = polled
    for one.ready, other.ready, asked in (
        (b"", READY, HOSTS[1:2]),
        (READY, READY, HOSTS[:2]),
        (DRAINING, DRAINING, HOSTS[:2]),
        (READY, DRAINING, HOSTS[:1]),
    ):
        until(lambda asked=asked: who(front) == set(asked))  # type: ignore[misc]
        assert who(front) == set(asked)
    one.reply, others = b"", len(other.requests)
    assert infer(front).status == 502
    assert len(other.requests) == others, "it was sent twice"
    one.__exit__(None, None, None)
    assert who(front, 10) == set(HOSTS[1:2])


def test_peers_that_hangs_or_ends(polled: Polled) -> None:
    """What it said long ago does not count: all addresses are asked. It is started again."""
    front, (one, other) = polled
    one.ready, other.ready = READY, DRAINING
    until(lambda: who(front) == set(HOSTS[:1]))
    [again] = [p for p in front.workers if b"again.sh" in Path(f"/proc/{p}/cmdline").read_bytes()]
    [peers] = children(again)
    os.kill(peers, signal.SIGSTOP)
    until(lambda: who(front) == set(HOSTS[:2]))
    os.kill(peers, signal.SIGKILL)
    one.ready, other.ready = DRAINING, READY
    until(lambda: who(front) == set(HOSTS[1:2]))
    assert "peers.sh ended with 137" in front.errors


def test_what_cannot_be_started_ends_the_front() -> None:
    """again.sh, to which the system gives no process any more."""
    program = ["sh", str(NGINX / "again.sh")]
    user = os.getuid() or 100_000 + os.getpid()  # root is not held back, and others run tests, too
    if os.getuid() == 0:
        program = ["setpriv", f"--reuid={user}", "--clear-groups", *program]
    with subprocess.Popen(["sleep", "60"], user=user) as nginx:
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
    head, _, body = upstream.requests[0].partition(b"\r\n\r\n")
    assert body == BODY
    first, *lines = head.decode().split("\r\n")
    assert first == f"POST {INFER} HTTP/1.1"
    headers = dict(line.split(": ") for line in lines)
    assert headers.pop("Host") == f"{HOSTS[0]}:{port}"
    assert headers == known | {"Connection": "close", "Content-Length": str(len(BODY))}


def test_openais_interface_gets_the_key(start: Start, port: int) -> None:
    """And a query, and no other header of the client's."""
    sent = {"X-Request-Id": "mine-1", "Authorization": "Bearer a-key"}
    with Upstream(HOSTS[0], port, reply("")) as upstream, start(None) as front:
        path = "/v1/models?limit=2"
        front.send("GET", path, headers=sent | {"Cookie": "a=b"}, port=front.openai)
    first, *lines = upstream.requests[0].partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert first == f"GET {path} HTTP/1.1"
    headers = dict(line.split(": ") for line in lines)
    own = {"Host": f"{HOSTS[0]}:{port}", "Connection": "close", "Content-Type": "application/json"}
    assert headers == sent | own


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
