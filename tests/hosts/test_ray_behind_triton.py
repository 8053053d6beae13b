"""`embed` behind a real Triton, its second stage where Ray has put an agent, and one agent more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.hosts.conftest import Hosts
from tests.support import repository
from tests.support.network import Host
from tests.support.processes import children, until
from tests.support.ray_cluster import NOTICED_SOON, Cluster, processes, ray_cluster
from tests.support.repository import Layout
from tests.support.triton_over_hosts import CLIENTS, RIGHT, START_SECONDS, TOKEN, serving

pytest.importorskip("ray", reason="Ray is not installed (requirements-ray.txt)")
pytestmark = pytest.mark.campaign
ACROSS = Layout(1, 2, hosts=2, placement="ray")
AGENT = "python_mp.agent"


def ranks(host: Host) -> list[int]:
    agents = processes(host, AGENT)
    return [pid for each in agents for server in children(each) for pid in children(server)]


def prepared(cluster: Cluster) -> int:
    """Agents that have said so, which stands in Ray's logs of their actors."""
    logs = cluster.folder.rglob("worker-*.err")
    return sum("ready for ranks of" in log.read_text() for log in logs)


@pytest.mark.timeout(400)
def test_a_spare_takes_the_place_of_a_host_that_is_killed_and_ray_brings_the_next_one(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_TOKEN", TOKEN)  # Of the hosts' environment, as Ray's nodes have it.
    repository.copy(tmp_path / "repository", "embed_tokenizer", "embed_vectors")
    repository.add_variant(tmp_path / "repository", ACROSS)
    with hosts(4) as (a, *others), ray_cluster([a, *others], **NOTICED_SOON) as cluster:
        given = f"--ray-address={cluster.address}", "--ray-spares=1"
        cache = f"--ray-agent-options=--cache={tmp_path / 'cache'}"
        with serving(a, [], tmp_path, *given, cache) as served:
            for number in (1, 2):
                until(lambda: prepared(cluster) > number, START_SECONDS)  # noqa: B023
                (busy,) = (host for host in others if ranks(host))
                with served.load(ACROSS.name) as found:
                    until(lambda: len(found) > CLIENTS)
                    with served.back(f"host {number} killed"):
                        busy.kill()
                assert Counter(found) == {RIGHT: CLIENTS * 100}
