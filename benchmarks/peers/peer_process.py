"""A peer while it serves: started, waited for, asked, ended with all that it started."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load import Target, closed_loop
from benchmarks.peers import venv
from benchmarks.peers.http_load import Order
from benchmarks.peers.peer import Array, Peer, Wire
from clients.closed_loop import Load
from server.endpoints import Endpoints

START_SECONDS = 600.0
"""The first start of one that compiles takes minutes."""
END_SECONDS = 30.0
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class PeerError(Exception):
    """It did not serve; the message says where its log is."""


@dataclass(frozen=True)
class Running:
    peer: Peer
    endpoints: Endpoints
    ready_seconds: float

    def ask(self, text: str) -> Array:
        return _ask(self.peer.wire, self.endpoints, text)

    def load(self, door: str, texts: list[str], concurrency: int, seconds: float) -> Load:
        """Always `concurrency` requests of one text each in flight."""
        if door == "gRPC":
            assert self.peer.triton_model
            model = self.peer.triton_model
            target = Target(self.endpoints.grpc_url, TOKEN, model, "TEXT", texts)
            return closed_loop(target, concurrency, seconds)
        wire = self.peer.wire
        bodies = [wire.body(text) for text in texts]
        return Order(_url(wire, self.endpoints), bodies, concurrency, seconds).carried_out()


TOKEN = "benchmark-of-peers"


@contextmanager
def started(peer: Peer, log: Path) -> Iterator[Running]:
    """Raises NotInstalled, and PeerError if it ends or does not answer in 600 s."""
    endpoints = Endpoints.free()
    command = [venv.python(peer.packages), *peer.command(endpoints)]
    began = time.monotonic()
    with log.open("w") as lines:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_ENVIRONMENT, **peer.environment},
            cwd=peer.folder,
            start_new_session=True,
        )
    try:
        _wait(process, peer, endpoints, log)
        yield Running(peer, endpoints, time.monotonic() - began)
    finally:
        _end(process)


_ENVIRONMENT = {"ADMIN_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def _wait(process: subprocess.Popen[bytes], peer: Peer, at: Endpoints, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, ValueError, KeyError):  # nobody listens, or it says "not yet"
            if _ask(peer.wire, at, "ready?").size:
                return
        time.sleep(0.1)
    what = "did not answer" if process.poll() is None else f"ended with {process.returncode}"
    raise PeerError(f"{peer.name} {what}: see {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Those that it started are known before it ends: some would outlive it."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        _, alive = psutil.wait_procs(family, timeout=1.0)
        for each in alive:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.kill()
    process.wait()


def _url(wire: Wire, endpoints: Endpoints) -> str:
    return f"http://{endpoints.http_url}{wire.path}"


def _ask(wire: Wire, endpoints: Endpoints, text: str) -> Array:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(_url(wire, endpoints), wire.body(text).encode(), headers)
    with _NO_PROXY.open(request, timeout=60) as answer:
        return wire.vector(answer.read())
