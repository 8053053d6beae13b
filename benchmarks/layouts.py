"""What to do with two cores: `embed` behind Triton in other layouts against two tensor-parallel
ranks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compare import SECONDS, at, latency, throughput
from benchmarks.load import Load, Target, closed_loop
from benchmarks.texts import short_texts
from server.endpoints import Endpoints
from server.process.launch import TritonServer
from tests.support import repository
from tests.support.repository import Layout

BASE = Layout(tp=2)
OTHERS = {
    "one rank": Layout(),
    "two replicas of one rank": Layout(replicas=2),
    "two pipeline stages": Layout(pp=2),
}


def run() -> Iterator[dict[str, Any]]:
    """One record a comparison."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        repository.copy(models, "embed_tokenizer", "embed_vectors")
        for layout in (BASE, *OTHERS.values()):
            repository.add_variant(models, layout)
        server = TritonServer(models, endpoints=Endpoints.free(), show=lambda _: None)
        with server:
            base = partial(_load, server, BASE)
            for name, layout in OTHERS.items():
                sides = (partial(_load, server, layout), base)
                title = f"embed: {name} / two tensor-parallel ranks"
                yield throughput(f"{title}, 32 in flight", *at(32, *sides))
                yield latency(f"{title}, 1 in flight", *at(1, *sides))


def _load(server: TritonServer, layout: Layout, concurrency: int) -> Load:
    url, token = server.endpoints.grpc_url, server.settings.token
    target = Target(url, token, layout.name, "TEXT", short_texts())
    return closed_loop(target, concurrency, SECONDS)
