"""`embed` behind a real Triton, its second stage on another host, while hosts and links fail."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

import pytest
from tritonclient.utils import InferenceServerException

from server.endpoints import VARIABLES, Endpoints
from tests.hosts.conftest import Hosts
from tests.support import repository
from tests.support.calls import BOUND, Client, reference
from tests.support.command import variables
from tests.support.network import Host
from tests.support.other_hosts import Program
from tests.support.processes import alive, children, until
from tests.support.repository import Layout

pytestmark = pytest.mark.campaign
LEASE, START_SECONDS = 5.0, 120.0
BACK_SECONDS = 15.0
"""A third of a second to three, where the machine has nothing else to do."""
CLIENTS, REQUESTS = 8, 100
CUT_SECONDS = 20.0
RIGHT = "right"
REFUSED = "agents on 1 other hosts, and 0 are connected"
TOKEN = "a token of these tests"
ACROSS = Layout(1, 2, hosts=2)


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

    def answers(self) -> bool:
        with self.leader.entered(), Client(self.endpoints, "http") as client:
            return _embed(client, 0) == RIGHT

    @contextmanager
    def back(self, what: str) -> Iterator[None]:
        """Within it something happens after which there is a new generation."""
        before, began = len(self.server.lines), time.monotonic()
        yield
        self.server.says(r"generation \d+: 2 ranks serve", BACK_SECONDS, since=before)
        print(f"{what}; serves {time.monotonic() - began:.1f} s later")

    @contextmanager
    def load(self) -> Iterator[list[str]]:
        """CLIENTS clients with REQUESTS each; what became of them."""
        found: list[str] = []

        def ask(first: int) -> None:
            with self.leader.entered(), Client(self.endpoints, "http") as client:
                for number in range(first, first + REQUESTS):
                    answer = _embed(client, number)
                    found.append(answer)

        threads = [threading.Thread(target=ask, args=(n * REQUESTS,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield found
        finally:
            for thread in threads:
                thread.join()


def _embed(client: Client, number: int) -> str:
    """RIGHT, or what went wrong."""
    which = [number % 200]
    try:
        vectors = client.embed([reference().texts[which[0]]], ACROSS.name)
    except (InferenceServerException, OSError) as error:
        return str(error)
    right = reference().cosine(which, vectors) >= BOUND["float32"]
    return RIGHT if right else f"another answer to {number}"


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
        reference()
        served = Served(server, leader, others, endpoints, folder, held)
        for other in others:
            served.agent(other)
        server.says("Ctrl-C drains", START_SECONDS)
        yield served


@pytest.fixture(scope="module")
def served(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Triton on a, agents on b and c, of which one has the second stage."""
    folder = tmp_path_factory.mktemp("over_hosts")
    with hosts(3) as (a, b, c), serving(a, [b, c], folder, ACROSS) as served:
        yield served


def test_answers_are_right(served: Served) -> None:
    with served.load() as found:
        pass
    assert Counter(found) == {RIGHT: CLIENTS * REQUESTS}


@pytest.mark.parametrize("whole", [False, True], ids=["agent", "host"])
def test_what_dies_loses_nothing(served: Served, whole: bool) -> None:
    """There is another host, whose agent is ready for it."""
    busy = served.busy
    with served.load() as found:
        until(lambda: len(found) > CLIENTS)
        with served.back("killed"):
            busy.kill() if whole else served.kill_agent(busy)
    assert Counter(found) == {RIGHT: CLIENTS * REQUESTS}
    served.agent(busy).says("ready for ranks of")


def test_beyond_a_cut_link_nothing_goes_on(served: Served) -> None:
    """Neither side is told. There is no other host, so requests are kept, and then refused."""
    busy = served.busy
    (spare,) = (host for host in served.others if host is not busy)
    served.kill_agent(spare)
    ranks = served.ranks(busy)
    with served.load() as found:
        until(lambda: len(found) > CLIENTS)
        busy.cut()
        began = time.monotonic()
        until(lambda: not any(map(alive, ranks)))
        gone = time.monotonic() - began
        until(lambda: time.monotonic() > began + CUT_SECONDS, 2 * CUT_SECONDS)
        with served.back("mended"):
            busy.mend()
        until(served.answers)
    print(f"ranks beyond the cut were gone after {gone:.1f} s")
    counts = Counter(found)
    assert {why for why in counts if why != RIGHT and REFUSED not in why} == set()
    assert gone < LEASE + 1
    served.agent(spare).says("ready for ranks of")


@pytest.mark.parametrize("trouble", ["slow", "losing"])
def test_a_poor_link_only_takes_longer(served: Served, trouble: str) -> None:
    """50 ms there and 50 back, or every twentieth packet lost."""
    busy, before = served.busy, len(served.server.lines)
    busy.delay(0.05) if trouble == "slow" else busy.lose(0.05)
    began = time.monotonic()
    with served.load() as found:
        pass
    print(f"{trouble}: {len(found) / (time.monotonic() - began):.1f} texts/s")
    busy.delay(0)
    busy.lose(0)
    assert Counter(found) == {RIGHT: CLIENTS * REQUESTS}
    assert not [line for line in served.server.lines[before:] if "generation" in line]


@pytest.mark.parametrize("what", ["the stub", "tritonserver", "the watcher"])
def test_with_the_leader_all_ranks_end(served: Served, what: str) -> None:
    """Whoever dies there: within the lease nothing of the old generation is left on any host."""
    ranks = [pid for host in served.others for pid in served.ranks(host)]
    assert ranks
    watcher = served.server.process.pid
    (triton,) = (pid for pid in children(watcher) if _name(pid) == "tritonserver")
    (stub,) = (pid for pid in children(triton) if f"{ACROSS.name}_encoder" in _command(pid))
    os.kill({"the stub": stub, "tritonserver": triton, "the watcher": watcher}[what], SIGKILL)
    until(lambda: not any(map(alive, ranks)), LEASE + 2)
    if what == "the watcher":
        until(lambda: not alive(triton))
    else:
        until(served.answers, START_SECONDS)


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
