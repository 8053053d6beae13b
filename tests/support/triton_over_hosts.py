"""A real Triton on one of the hosts of `tests/support/network.py`, and agents on others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from server.endpoints import VARIABLES, Endpoints
from tests.support.calls import BOUND, Client, reference
from tests.support.command import variables
from tests.support.network import Host
from tests.support.other_hosts import Program
from tests.support.processes import children

START_SECONDS = 120.0
BACK_SECONDS = 15.0
"""A third of a second to three, where the machine has nothing else to do."""
TOKEN = "a-token-of-these-tests"
CLIENTS = 8
RIGHT = "right"


@dataclass
class Served:
    """Triton on host a, and agents on others."""

    server: Program
    leader: Host
    others: list[Host]
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

    def kill_agent(self, host: Host) -> None:
        self.agents[host.name].kill()

    def ranks(self, host: Host) -> list[int]:
        forkservers = children(self.agents[host.name].process.pid)
        return [pid for each in forkservers for pid in children(each)]

    @property
    def busy(self) -> Host:
        """Where the second stage is."""
        (found,) = (host for host in self.others if self.ranks(host))
        return found

    @contextmanager
    def back(self, what: str) -> Iterator[None]:
        """Within it something happens after which there is a new generation."""
        before, began = len(self.server.lines), time.monotonic()
        yield
        self.server.says(r"generation \d+: 2 ranks serve", BACK_SECONDS, since=before)
        print(f"{what}; serves {time.monotonic() - began:.1f} s later")

    @contextmanager
    def load(self, model: str, requests: int = 100) -> Iterator[list[str]]:
        """CLIENTS clients of an `embed` with so many requests each; what became of them."""
        found: list[str] = []

        def ask(first: int) -> None:
            with self.leader.entered(), Client(self.endpoints, "http") as client:
                for number in range(first, first + requests):
                    answer = embedded(client, model, number)
                    found.append(answer)

        threads = [threading.Thread(target=ask, args=(n * requests,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield found
        finally:
            for thread in threads:
                thread.join()


def embedded(client: Client, model: str, number: int) -> str:
    """RIGHT, or what went wrong."""
    which = [number % len(reference().texts)]
    try:
        vectors = client.embed([reference().texts[which[0]]], model)
    except (InferenceServerException, OSError) as error:
        return str(error)
    right = reference().cosine(which, vectors) >= BOUND["float32"]
    return RIGHT if right else f"another answer to {number}"


@contextmanager
def serving(leader: Host, others: Sequence[Host], folder: Path, *options: str) -> Iterator[Served]:
    """The models of `folder`/repository, once all of them serve."""
    endpoints = Endpoints(**dict(zip(VARIABLES, range(8000, 8100), strict=False)))
    names = {
        "AGENT_TOKEN": TOKEN,
        "ADMIN_TOKEN": TOKEN,
        "AGENT_HOST": leader.address,
        "PYTHONPATH": "",
    }
    models = f"--model-repository={folder / 'repository'}"
    with pytest.MonkeyPatch.context() as patch, ExitStack() as held:
        for name, value in names.items():
            patch.setenv(name, value)
        with leader.entered():
            server = Program("server", models, *options, **variables(endpoints))
        held.callback(server.kill)
        served = Served(server, leader, list(others), endpoints, folder, held)
        for other in others:
            served.agent(other)
        reference()  # Meanwhile: it takes seconds.
        server.says("Ctrl-C drains", START_SECONDS)
        yield served
