"""`embed` behind a real Triton, its second stage on another host, while hosts and links fail."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.hosts.conftest import Hosts
from tests.support import repository
from tests.support.calls import Client
from tests.support.command import variables
from tests.support.other_hosts import Program
from tests.support.processes import alive, children, until
from tests.support.repository import Layout
from tests.support.triton_over_hosts import (
    CLIENTS,
    RIGHT,
    START_SECONDS,
    Served,
    embedded,
    serving,
)

pytestmark = pytest.mark.campaign
LEASE = 5.0
ALL_RIGHT = {RIGHT: CLIENTS * 100}
CUT_SECONDS, CHAOS_SECONDS = 20.0, 240.0
REFUSED = "agents on 1 other hosts, and 0 are connected"
ACROSS = Layout(1, 2, hosts=2)


@pytest.fixture(scope="module")
def served(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Triton on a, agents on b and c, of which one has the second stage."""
    folder = tmp_path_factory.mktemp("over_hosts")
    repository.copy(folder / "repository", "embed_tokenizer", "embed_vectors")
    repository.add_variant(folder / "repository", ACROSS)
    with hosts(3) as (a, b, c), serving(a, [b, c], folder) as served:
        yield served


def answers(served: Served) -> bool:
    with served.leader.entered(), Client(served.endpoints, "http") as client:
        return embedded(client, ACROSS.name, 0) == RIGHT


@pytest.mark.parametrize("whole", [False, True], ids=["agent", "host"])
def test_what_dies_loses_nothing(served: Served, whole: bool) -> None:
    """There is another host, whose agent is ready for it."""
    busy = served.busy
    with served.load(ACROSS.name) as found:
        until(lambda: len(found) > CLIENTS)
        with served.back("killed"):
            busy.kill() if whole else served.kill_agent(busy)
    assert Counter(found) == ALL_RIGHT
    served.agent(busy).says("ready for ranks of")


def test_an_agent_that_is_started_again_serves_again(served: Served) -> None:
    """There is no other host: what it takes is mostly to import the engine once more."""
    busy = served.busy
    (spare,) = (host for host in served.others if host is not busy)
    served.kill_agent(spare)
    with served.load(ACROSS.name) as found:
        until(lambda: len(found) > CLIENTS)
        with served.back("killed and started again"):
            served.kill_agent(busy)
            served.agent(busy)
    assert Counter(found) == ALL_RIGHT
    served.agent(spare).says("ready for ranks of")


def test_beyond_a_cut_link_nothing_goes_on(served: Served) -> None:
    """Neither side is told. There is no other host, so requests are kept, and then refused."""
    busy = served.busy
    (spare,) = (host for host in served.others if host is not busy)
    served.kill_agent(spare)
    ranks = served.ranks(busy)
    with served.load(ACROSS.name) as found:
        until(lambda: len(found) > CLIENTS)
        busy.cut()
        began = time.monotonic()
        until(lambda: not any(map(alive, ranks)))
        gone = time.monotonic() - began
        until(lambda: time.monotonic() > began + CUT_SECONDS, 2 * CUT_SECONDS)
        with served.back("mended"):
            busy.mend()
        until(lambda: answers(served))
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
    with served.load(ACROSS.name) as found:
        pass
    print(f"{trouble}: {len(found) / (time.monotonic() - began):.1f} texts/s")
    busy.delay(0)
    busy.lose(0)
    assert Counter(found) == ALL_RIGHT
    assert not [line for line in served.server.lines[before:] if "generation" in line]


@pytest.mark.timeout(2 * CHAOS_SECONDS)
def test_chaos_hits_ranks_on_all_hosts_and_finds_nothing(served: Served) -> None:
    options = f"--model={ACROSS.name}", "--faults=kill,segfault,freeze", "--times=4", "--seconds=1"
    quick = "--warm-up=2", "--interval=0.5", "--freeze-seconds", "0.5", "8"
    with served.leader.entered():
        program = Program("clients.chaos", *options, *quick, **variables(served.endpoints))
    assert program.process.wait(CHAOS_SECONDS) == 0, program.lines
    hit = [line for line in program.lines if "rank" in line and "answers again" in line]
    assert any(" on host " in line for line in hit), hit
    assert any(" on host " not in line for line in hit), hit


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
        until(lambda: answers(served), START_SECONDS)


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
