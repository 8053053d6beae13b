"""`embed` behind a real Triton, its second stage on another host, while hosts and links fail."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from server.endpoints import VARIABLES, Endpoints
from tests.hosts.conftest import Hosts
from tests.support import repository
from tests.support.calls import BOUND, Client, reference
from tests.support.command import variables
from tests.support.network import Host
from tests.support.other_hosts import Program
from tests.support.processes import children
from tests.support.repository import Layout

LEASE, START_SECONDS = 5.0, 120.0
CLIENTS, REQUESTS = 8, 100
TOKEN = "a token of these tests"
ACROSS = Layout(1, 2, hosts=2)


@dataclass
class Served:
    """Triton on host a, and agents on others."""

    server: Program
    leader: Host
    endpoints: Endpoints
    folder: Path
    held: ExitStack
    agents: dict[str, Program] = field(default_factory=dict)

    def agent(self, host: Host) -> Program:
        """Another one on that host; it need not be connected yet."""
        where = "--connect", f"{self.leader.address}:{self.endpoints.agents}", "--name", host.name
        with host.entered():
            started = Program("python_mp.agent", *where, "--cache", self.folder / host.name)
        self.held.callback(started.kill)
        self.agents[host.name] = started
        return started

    def embed(self, number: int, model: str) -> bool:
        """Whether the answer is right; raises where there is none. Call it on the leader's host."""
        with Client(self.endpoints, "http") as client:
            which = [number % 200]
            vectors = client.embed([reference().texts[number % 200]], model)
        return reference().cosine(which, vectors) >= BOUND["float32"]

    def answers(self, model: str) -> bool:
        with self.leader.entered():
            try:
                return self.embed(0, model)
            except (InferenceServerException, OSError):
                return False

    @contextmanager
    def load(self, model: str, requests: int = REQUESTS) -> Iterator[Counter[str]]:
        """CLIENTS clients with so many requests each; counts them by what became of them."""
        found: Counter[str] = Counter()

        def ask(first: int) -> None:
            with self.leader.entered():
                for number in range(first, first + requests):
                    try:
                        found["right" if self.embed(number, model) else "wrong"] += 1
                    except (InferenceServerException, OSError) as error:
                        found[str(error)] += 1

        threads = [threading.Thread(target=ask, args=(n * requests,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield found
        finally:
            for thread in threads:
                thread.join()

    def ranks(self, host: str) -> list[int]:
        forkservers = children(self.agents[host].process.pid)
        return [pid for each in forkservers for pid in children(each)]


@contextmanager
def serving(leader: Host, others: list[Host], folder: Path, *layouts: Layout) -> Iterator[Served]:
    models = folder / "repository"
    repository.copy(models, "embed_tokenizer", "embed_vectors")
    for layout in layouts:
        repository.add_variant(models, layout)
    endpoints = Endpoints(**dict(zip(VARIABLES, range(8000, 8100), strict=False)))
    names = {"AGENT_TOKEN": TOKEN, "AGENT_HOST": leader.address, "PYTHONPATH": ""}
    with pytest.MonkeyPatch.context() as patch, ExitStack() as held:
        for name, value in names.items():
            patch.setenv(name, value)
        with leader.entered():
            server = Program("server", f"--model-repository={models}", **variables(endpoints))
        held.callback(server.kill)
        served = Served(server, leader, endpoints, folder, held)
        for other in others:
            served.agent(other)
        server.says("Ctrl-C drains", START_SECONDS)
        yield served


def test_answers_and_failures(hosts: Hosts, tmp_path: Path) -> None:
    """One server for all: to start it takes most of the time."""
    with hosts(3) as (a, b, c), serving(a, [b, c], tmp_path, ACROSS) as served:
        model = ACROSS.name
        with served.load(model) as found:
            pass
        assert found == {"right": CLIENTS * REQUESTS}
