"""nginx as deploy/nginx starts it, on ports of its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from server.endpoints import Endpoints
from server.process.installation import PROJECT
from tests.support.processes import children, until

NGINX = PROJECT / "deploy" / "nginx"
SERVICE = "/inference.GRPCInferenceService"
TOKEN = "known-to-the-tests"
SECONDS = 30.0
# Else root's workers are nobody, who may not read in pytest's folders.
WORKERS_USER = ["-g", "user root;"] if os.getuid() == 0 else []


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The sentence of a refusal."""
        return str(json.loads(self.body)["error"])


@dataclass
class Front:
    """A running nginx; ports on 127.0.0.1."""

    http: int
    grpc: int
    tls: int
    openai: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.grpc}"

    @property
    def tls_url(self) -> str:
        return f"localhost:{self.tls}"

    @property
    def certificate(self) -> Path:
        return self.folder / "tls" / "tls.crt"

    @property
    def workers(self) -> list[int]:
        """Process ids."""
        return children(self.process.pid)

    @property
    def errors(self) -> str:
        return (self.folder / "error.log").read_text(errors="replace")

    @property
    def log(self) -> list[dict[str, str]]:
        """The access log's lines, oldest first."""
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    def logged(self, answer: Answer) -> dict[str, str]:
        """The line of this answer, which is written once it was sent."""
        number = answer.headers["x-request-id"]
        until(lambda: any(line["id"] == number for line in self.log))
        return next(line for line in self.log if line["id"] == number)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Any = None,
        *,
        port: int | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.http, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            return _answer(connection.getresponse())
        finally:
            connection.close()

    def raw(self, data: bytes, seconds: float = 5.0) -> Answer:
        """The answer to these very bytes, be it that they are not read to the end."""
        with socket.create_connection(("127.0.0.1", self.http), seconds) as connection:
            with suppress(OSError):
                connection.sendall(data)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return _answer(response)

    def call(
        self, message: bytes = b"", rpc: str = "ModelInfer", **more: Any
    ) -> tuple[grpc.StatusCode, str]:
        """Status and sentence of a call over gRPC."""
        with grpc.insecure_channel(self.grpc_url) as channel:
            try:
                channel.unary_unary(f"{SERVICE}/{rpc}")(message, timeout=SECONDS, **more)
            except grpc.RpcError as error:
                return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    def stream(
        self, messages: Iterable[bytes], came: Callable[[], object] = int, **more: Any
    ) -> tuple[grpc.StatusCode, str, int]:
        """Status and sentence at the end of a stream of these, and how many answers came; for each
        `came` is called."""
        answers = 0
        with grpc.insecure_channel(self.grpc_url) as channel:
            call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
            try:
                for _ in call(iter(messages), timeout=SECONDS, **more):
                    answers += 1
                    came()
            except grpc.RpcError as error:
                return error.code(), error.details(), answers
        return grpc.StatusCode.OK, "", answers


def _answer(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def behind(triton: Endpoints) -> dict[str, str]:
    """The environment of its front."""
    ports = {"HTTP": triton.http, "GRPC": triton.grpc, "HEALTH": triton.health}
    ports |= {"OPENAI": triton.openai}
    return {"UPSTREAM": triton.host} | {f"UPSTREAM_{n}_PORT": str(p) for n, p in ports.items()}


def at(port: int) -> dict[str, str]:
    """That of a front whose upstream has one port for everything."""
    return behind(Endpoints(http=port, grpc=port, health=port, openai=port))


@contextmanager
def front(nginx: str, folder: Path, **environment: str) -> Iterator[Front]:
    """nginx with this environment over the tests' own; `folder` takes its files."""
    folder.mkdir(exist_ok=True)
    ports = Endpoints.free()
    own = {
        "HOST": "127.0.0.1",
        "HTTP_PORT": str(ports.http),
        "GRPC_PORT": str(ports.grpc),
        "TLS_PORT": str(ports.metrics),
        "OPENAI_PORT": str(ports.openai),
        "NGINX_BIN": nginx,
        "RUN_DIR": str(folder / "run"),
        "TLS_DIR": str(folder / "tls"),
        "ACCESS_LOG": str(folder / "access.log"),
        "ADMIN_TOKEN": TOKEN,
        "ADMIN_RATE": "1000r/s",
        "WORKERS": "1",
        "RESOLVER": "127.0.0.1",
    }
    subprocess.run(["sh", NGINX / "certificate.sh", folder / "tls"], check=True)
    with (folder / "error.log").open("wb") as errors:
        process = subprocess.Popen(
            ["sh", NGINX / "entrypoint.sh", *WORKERS_USER],
            env={**os.environ, **own, **environment},
            stderr=errors,
        )
    started = Front(ports.http, ports.grpc, ports.metrics, ports.openai, folder, process)
    try:
        until(lambda: _is_up(started))
        yield started
    finally:
        process.terminate()
        process.wait(SECONDS)
    meant = r"STREAM_LIFETIME|more than \d+ parts"
    bad = rf"js exception(?!.*({meant}))|exited on signal|\[(emerg|alert)\]"
    assert not re.search(bad, started.errors)


def _is_up(front: Front) -> bool:
    assert front.process.poll() is None, front.errors
    with suppress(OSError):
        return front.send("GET", "/healthz").status == 200
    return False
