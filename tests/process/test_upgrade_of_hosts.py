"""Hosts of which one has another release for a while: nothing is computed by two of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from python_mp.agent.versions import PACKAGE
from tests.support.configs import echo_config
from tests.support.other_hosts import hosts
from tests.support.processes import ENVIRONMENT, ROOT, until
from tests.support.replicas import ask, counted, served, values


@pytest.fixture
def next_release(tmp_path: Path) -> str:
    """Where modules are found of which one says something else than ours."""
    package = tmp_path / "release" / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "agent" / "lease.py").open("a") as module:
        module.write("# The next one.\n")
    return f"{package.parent}:{ROOT}"


@pytest.mark.parametrize("first", ["agent", pytest.param("leader", marks=pytest.mark.campaign)])
def test_whoever_is_upgraded_first_waits_for_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_release: str, first: str
) -> None:
    (tmp_path / "echo" / "1").mkdir(parents=True)
    config = echo_config(tmp_path / "echo", pipeline_parallel_size=2, hosts=2)
    with hosts(tmp_path, "b") as made, served(config, tmp_path) as replica:
        assert values([ask(replica, 1)]) == [[1]]
        monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", next_release)
        if first == "agent":
            made.agents["b"].kill()
            made.agent("b").says(r"refuses this agent: .*the agent has code \w+ \(here \w+\)")
            made.exchange.kill()
            made.start_exchange()
        else:
            made.exchange.kill()
            made.start_exchange()
            made.agents["b"].says(r"refuses this agent: .*the agent has code \w+ \(here \w+\)")
            made.agents["b"].kill()
            made.agent("b")
        until(lambda: replica.replica.serves)
        assert values([ask(replica, n) for n in range(9)]) == [[n] for n in range(9)]
        assert counted(replica, "restarts_total") == [1]
