"""GET /live, /ready, /status and /metrics: what the watcher knows, over HTTP. Nothing here asks
tritonserver."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from socket import socket
from typing import Any, Self

from server import metrics, token
from server.metrics import Metrics
from server.net import Net

THREADS = 16
SECONDS = 5.0  # for a client to send its request and take the answer
JSON = dict[str, Any]


class Health:
    """Answers in threads, from what `tell` was told last.

    Args:
        listener: a socket that listens.
        secret: the admin token, which /status wants.
        net: takes what goes wrong in the pages' thread.
    """

    def __init__(self, listener: socket, secret: str, net: Net) -> None:
        self._server = _Server(listener, secret)
        self._net = net
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def tell(self, *, live: bool, ready: JSON, status: JSON) -> None:
        """What is the case from now on: bodies of /ready, with its "ready", and of /status."""
        self._server.pages = {
            "/live": (200 if live else 503, {"live": live}),
            "/ready": (200 if ready["ready"] else 503, ready),
            "/status": (200, status),
        }
        self._server.metrics.status = status

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def _run(self) -> None:
        loop = self._net["the health pages"]
        while not self._closed.is_set():
            loop.run(lambda: self._server.serve_forever(0.1))
            self._closed.wait(loop.pause)

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket, secret: str) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.secret = secret
        self.pages: dict[str, tuple[int, JSON]] = {}
        self.metrics = Metrics()
        self._free = threading.BoundedSemaphore(THREADS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: HTTPServer
    server_version, sys_version = "health", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        if self.path == "/metrics":
            self._answer(200, metrics.CONTENT_TYPE, self.server.metrics.page())
            return
        code, body = self.server.pages.get(self.path, (404, {"error": "try /live or /ready"}))
        if self.path == "/status" and not token.same(
            self.headers.get(token.HEADER), self.server.secret
        ):
            code, body = 403, {"error": f"/status wants the admin token as {token.HEADER}"}
        self._answer(code, "application/json", json.dumps(body).encode())

    def _answer(self, code: int, kind: str, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Load balancers ask every second."""
