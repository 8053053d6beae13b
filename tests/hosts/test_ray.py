"""Agents that a real Ray places on hosts: what is lost with a host, with Ray's head, with Ray's
driver."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGSTOP

import pytest

from python_mp.machine.net import Net
from python_mp.wire.exchange_line import VARIABLE
from server.__main__ import parse
from server.endpoints import Endpoints
from server.process.ray_placement import MODULE, RayPlacement
from tests.hosts.conftest import Hosts
from tests.support.configs import echo_config
from tests.support.network import Host
from tests.support.other_hosts import QUICK, Program
from tests.support.processes import alive, until
from tests.support.ray_cluster import NOTICED_SOON, Cluster, processes, ray_cluster
from tests.support.replicas import Served, ask, counted, served, values

pytest.importorskip("ray", reason="Ray is not installed (requirements-ray.txt)")
pytestmark = pytest.mark.campaign  # A cluster of Ray takes half a minute.
START_SECONDS = 60.0
LEASE, NOISE_SECONDS = float(QUICK[-1]), 2.0
AGENT = "python_mp.agent"
GROUPS = """
import sys, ray
from ray.util import placement_group_table
ray.init(sys.argv[1], log_to_driver=False)
print(*(group["state"] for group in placement_group_table().values()))
"""
TOKEN = "a token of these tests"


@dataclass
class Placed:
    """A replica of two ranks, the second where Ray has put its host's agent."""

    cluster: Cluster
    exchange: Program
    replica: Served
    said: list[str] = field(default_factory=list)

    @property
    def others(self) -> list[Host]:
        return [*self.cluster.hosts[1:]]

    @property
    def busy(self) -> Host:
        (found,) = (host for host in self.others if processes(host, AGENT))
        return found

    def driver(self) -> list[int]:
        return processes(self.cluster.hosts[0], MODULE)

    def agents(self) -> list[int]:
        return [pid for host in self.others for pid in processes(host, AGENT)]

    def groups(self) -> list[str]:
        """What Ray says of its placement groups."""
        command = [sys.executable, "-c", GROUPS, self.cluster.address]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()

    def restarts(self) -> float:
        return counted(self.replica, "restarts_total")[0]

    def serves_elsewhere(self, lost: Host) -> None:
        """Once this host is lost."""
        began = time.monotonic()
        until(lambda: not self.replica.replica.serves)
        until(lambda: self.replica.replica.serves, START_SECONDS)
        print(f"serves on another host after {time.monotonic() - began:.1f} s")
        self.answers()
        assert [host for host in self.others if processes(host, AGENT) and host is not lost]

    def answers(self) -> None:
        assert values([ask(self.replica, n) for n in range(9)]) == [[n] for n in range(9)]


@pytest.fixture
def placed(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Placed]:
    name = f"python_mp-test-{os.getpid()}"
    monkeypatch.setenv("AGENT_TOKEN", TOKEN)
    monkeypatch.setenv(VARIABLE, name)
    (tmp_path / "echo" / "1").mkdir(parents=True)
    sizes = {"pipeline_parallel_size": 2, "hosts": 2, "placement": "ray"}
    config = echo_config(tmp_path / "echo", **sizes)
    with ExitStack() as held:
        made = held.enter_context(hosts(3))
        cluster = held.enter_context(ray_cluster(made, **NOTICED_SOON))
        held.enter_context(made[0].entered())
        exchange = Program(f"{AGENT}.exchange_server", name, "--host", made[0].address, *QUICK)
        held.callback(exchange.kill)
        where_to = f"--cache={tmp_path / 'cache'}"
        given = f"--ray-address={cluster.address}", f"--ray-agent-options={where_to}"
        where = Endpoints(agent_host=made[0].address)
        said: list[str] = []
        held.enter_context(RayPlacement(1, parse(given)[0], where, Net(), said.append))
        exchange.says("agent .* is connected", START_SECONDS)
        replica = held.enter_context(served(config, tmp_path))
        yield Placed(cluster, exchange, replica, said)


def test_what_is_lost_with_ray_is_placement_only(placed: Placed) -> None:
    """Its driver is killed, and a host before that is back; then Ray's head; then the exchange,
    after which nothing stays."""
    placed.answers()
    agents = placed.agents()
    (driver,) = placed.driver()
    os.kill(driver, SIGKILL)
    until(lambda: bool(placed.said))
    placed.answers()
    assert placed.agents() == agents
    assert placed.restarts() == 0
    lost = placed.busy
    lost.kill()
    placed.serves_elsewhere(lost)
    agents = placed.agents()
    placed.cluster.kill_head()
    placed.answers()
    assert placed.agents() == agents
    assert placed.restarts() == 1
    placed.exchange.kill()
    until(lambda: not any(map(alive, agents)), LEASE + NOISE_SECONDS)


def test_another_host_takes_the_place_of_one_that_is_cut_off(placed: Placed) -> None:
    """Ray lets none of its bundles be twice. When there is no server any more, nothing is left:
    neither agents nor the group that reserves their hosts."""
    placed.answers()
    lost = placed.busy
    agents = placed.agents()
    lost.cut()
    placed.serves_elsewhere(lost)
    lost.mend()
    until(lambda: not any(map(alive, agents)), START_SECONDS)
    placed.answers()
    assert placed.restarts() == 1
    agents = placed.agents()
    assert agents
    assert "CREATED" in placed.groups()
    (driver,) = placed.driver()
    os.kill(driver, SIGSTOP)  # Killed it would be started again.
    placed.exchange.kill()
    until(lambda: not placed.agents(), LEASE + NOISE_SECONDS)
    assert placed.groups() == ["REMOVED"]
    os.kill(driver, SIGKILL)
