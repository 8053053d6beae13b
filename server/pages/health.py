"""GET /live, /ready, /status and /metrics: what the watcher knows, over HTTP. Nothing here asks
tritonserver, and no client can keep another one waiting."""

import asyncio
import json
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from socket import socket
from typing import Any, Self
from urllib.parse import urlsplit

from python_mp.machine.net import Net
from python_mp.machine.thread import Thread
from server import token
from server.errors import ServerError
from server.pages import exposition
from server.pages.exposition import Metrics

CONNECTIONS = 128  # one more, and the oldest is dropped
SECONDS = 5.0  # for a client to connect, send its request and take the answer, all in all
BACKLOG = 1024
HEAD_BYTES = 16 << 10
JSON_TYPE = "application/json"
JSON = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What matters of one."""

    method: str
    path: str
    headers: dict[str, str]


class Pages:
    """What each path shows, from what was told last."""

    def __init__(self, secret: str, net: Net) -> None:
        self.bodies: dict[str, tuple[int, JSON]] = {}
        self.metrics = Metrics()
        self._secret = secret
        self._net = net

    def show(self, request: Request) -> tuple[int, str, bytes]:
        """Status, content type and content."""
        if request.method not in ("GET", "HEAD"):
            return _json(501, {"error": "GET and HEAD only"})
        if request.path == "/metrics":
            return self._measure()
        if request.path == "/status" and not token.same(
            request.headers.get(token.HEADER), self._secret
        ):
            return _json(403, {"error": f"/status wants the admin token as {token.HEADER}"})
        return _json(*self.bodies.get(request.path, (404, {"error": "try /live or /ready"})))

    def _measure(self) -> tuple[int, str, bytes]:
        pages: list[bytes] = []
        if self._net["the metrics page"].run(lambda: pages.append(self.metrics.page())):
            return 200, exposition.CONTENT_TYPE, pages[0]
        return _json(503, {"error": "the metrics cannot be had now; the server's log says why"})


class Health:
    """Answers in a thread of its own.

    Args:
        listener: a socket that listens.
        secret: the admin token, which /status wants.
        net: takes what goes wrong here.
    """

    def __init__(self, listener: socket, secret: str, net: Net) -> None:
        self._pages = Pages(secret, net)
        self._listener = listener
        self._net = net
        self._open: dict[StreamWriter, None] = {}  # the oldest first
        self._closed = threading.Event()
        self._close: Callable[[], None] = lambda: None
        self._thread = Thread(target=self._run, daemon=True)

    def tell(self, *, live: bool, ready: JSON, status: JSON) -> None:
        """What is the case from now on: bodies of /ready, with its "ready", and of /status."""
        self._pages.bodies = {
            "/live": (200 if live else 503, {"live": live}),
            "/ready": (200 if ready["ready"] else 503, ready),
            "/status": (200, status),
        }
        self._pages.metrics.status = status

    def __enter__(self) -> Self:
        """Raises ServerError if there is no thread to be had."""
        try:
            self._thread.start()
        except RuntimeError as error:
            raise ServerError(f"the health pages cannot be shown: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._close()
        self._thread.join(SECONDS)
        self._listener.close()

    def _run(self) -> None:
        loop = self._net["the health pages"]
        while not self._closed.is_set():
            loop.run(lambda: asyncio.run(self._serve()))
            self._closed.wait(loop.pause)

    async def _serve(self) -> None:
        loop, closed = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda _, context: self._note(context))

        def close() -> None:
            with suppress(RuntimeError):  # it is over already
                loop.call_soon_threadsafe(closed.set)

        self._close = close
        server = await asyncio.start_server(
            self._connected, sock=self._listener.dup(), backlog=BACKLOG, limit=HEAD_BYTES
        )
        if self._closed.is_set():
            closed.set()
        try:
            await closed.wait()
        finally:
            server.close()
            for writer in self._open:
                writer.transport.abort()

    def _note(self, context: dict[str, Any]) -> None:
        """Such as too many open files when a connection is taken; asyncio tries again."""

        def fail() -> None:
            raise context.get("exception") or RuntimeError(context["message"])

        self._net["the health port"].run(fail)

    async def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._net["the health port"].run(lambda: None)
        if len(self._open) >= CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        self._open[writer] = None
        try:
            async with asyncio.timeout(SECONDS):
                await self._answer(reader, writer)
        except (OSError, ValueError, EOFError, asyncio.LimitOverrunError):
            pass  # who is slow, went away or speaks no HTTP is no news
        except asyncio.CancelledError:
            pass  # nor is the end of the pages, which asyncio would tell of each
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        request = await _read(reader)
        code, kind, content = self._pages.show(request)
        head = (
            f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\nConnection: close\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + (b"" if request.method == "HEAD" else content))
        writer.write_eof()
        while await reader.read(HEAD_BYTES):  # what it still sends, or it would not hear us
            pass
        writer.close()
        await writer.wait_closed()


async def _read(reader: StreamReader) -> Request:
    """Raises ValueError for what is no HTTP."""
    head = b""
    while (line := await reader.readuntil(b"\n")).strip() or not head:
        head += line
        if len(head) > HEAD_BYTES:
            raise ValueError("such a long head")
    first, *lines = head.decode("latin-1").strip().splitlines()
    method, target, *_ = first.split()
    path = urlsplit(target).path if "://" in target.partition("?")[0] else target.partition("?")[0]
    headers = (line.partition(":") for line in lines)
    return Request(
        method, path, {name.strip().lower(): value.strip() for name, _, value in headers}
    )


def _json(code: int, body: JSON) -> tuple[int, str, bytes]:
    return code, JSON_TYPE, json.dumps(body).encode()
