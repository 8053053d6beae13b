"""What the front costs: a model through nginx against straight to Triton, over gRPC.

Needs nginx with njs and openssl (Debian: nginx-light
libnginx-mod-http-js libnginx-mod-stream-js openssl).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compare import SECONDS, at, latency, throughput
from benchmarks.load import Target, closed_loop
from benchmarks.serving import MODELS
from benchmarks.texts import short_texts
from build_scripts.job import REPOSITORY
from clients.closed_loop import Load
from server.endpoints import Endpoints
from server.process.installation import PROJECT
from server.process.launch import TritonServer

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def run() -> Iterator[dict[str, Any]]:
    """One record a comparison."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = folder / "models"
        shutil.copytree(MODELS / "echo", models / "echo")
        (models / "echo" / "1").mkdir(exist_ok=True)
        for step in REPOSITORY.glob("embed*"):
            shutil.copytree(step, models / step.name)
        server = TritonServer(models, endpoints=Endpoints.free(), show=lambda _: None)
        stack.enter_context(server)
        urls = [stack.enter_context(_nginx(server, folder)), server.endpoints.grpc_url]
        for model, name, rows in (("echo", "X", [[0.5] * 128]), ("embed", "TEXT", short_texts())):
            sides = [
                partial(_load, Target(url, server.settings.token, model, name, rows))
                for url in urls
            ]
            title = f"{model} through nginx / direct"
            yield throughput(f"{title}, 32 in flight", *at(32, *sides))
            yield latency(f"{title}, 1 in flight", *at(1, *sides))


def _load(target: Target, concurrency: int) -> Load:
    return closed_loop(target, concurrency, SECONDS)


@contextmanager
def _nginx(server: TritonServer, folder: Path) -> Iterator[str]:
    """The front before this server; yields where it takes gRPC."""
    own, triton = Endpoints.free(), server.endpoints
    ports = {"HTTP_PORT": own.http, "GRPC_PORT": own.grpc, "TLS_PORT": own.metrics}
    ports |= {"UPSTREAM_HTTP_PORT": triton.http, "UPSTREAM_GRPC_PORT": triton.grpc}
    ports |= {"UPSTREAM_HEALTH_PORT": triton.health, "OPENAI_PORT": own.openai}
    places = {"HOST": own.host, "UPSTREAM": triton.host, "RUN_DIR": str(folder / "front")}
    places |= {"TLS_MADE": str(folder / "tls"), "ACCESS_LOG": "/dev/null"}
    environment = os.environ | {name: str(port) for name, port in ports.items()} | places
    environment["PATH"] += ":/usr/sbin"
    environment["ADMIN_TOKEN"] = server.settings.token
    command = ["sh", str(PROJECT / "deploy" / "nginx" / "entrypoint.sh")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as nginx:
        try:
            _wait(f"http://{own.http_url}/healthz", nginx)
            yield own.grpc_url
        finally:
            nginx.terminate()


def _wait(url: str, nginx: subprocess.Popen[bytes]) -> None:
    while nginx.poll() is None:
        try:
            _OPENER.open(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("nginx did not start; try: sh deploy/nginx/entrypoint.sh -t")
