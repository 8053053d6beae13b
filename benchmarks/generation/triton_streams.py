"""A Triton with models that generate, a client of it, and what its processes take."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchmarks.idle import processor_seconds
from server.endpoints import Endpoints
from server.process.launch import TritonServer

from .asked_program import Child, child
from .stream_client import Order, Seen


class Streams:
    """Streams asked for over gRPC by one client in a process of its own."""

    def __init__(self, server: TritonServer, client: Child) -> None:
        self._server, self._client = server, client

    def ask(self, model: str, prompts: list[list[int]] | list[str], max_tokens: int) -> Seen:
        order = Order(self._server.endpoints.grpc_url, model, prompts, max_tokens)
        return Seen(**self._client.ask(asdict(order)))

    def own_seconds(self) -> float:
        """Processor seconds of Triton and of all that it has started, but for the ranks."""
        assert self._server.pid
        used = processor_seconds(self._server.pid)
        return sum(seconds for (kind, _), seconds in used.items() if kind != "ranks")


@contextmanager
def streams(fill: Callable[[Path], None]) -> Iterator[Streams]:
    """
    Args:
        fill: puts the models into an empty repository.
    """
    command = [sys.executable, "-m", "benchmarks.generation.stream_client"]
    with tempfile.TemporaryDirectory() as name, child(command) as client:
        fill(Path(name))
        server = TritonServer(Path(name), endpoints=Endpoints.free(), show=lambda _: None)
        with server:
            yield Streams(server, client)
