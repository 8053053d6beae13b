"""Links that are slow, lose packets or are cut: what passes between a front and ranks beyond."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from python_mp.wire.exchange_line import VARIABLE
from tests.hosts.conftest import Hosts
from tests.support.configs import echo_config
from tests.support.network import Host
from tests.support.other_hosts import Program
from tests.support.processes import alive, children, until
from tests.support.replicas import Served, ask, counted, served, values

LEASE = 5.0
ASKED = 200


@pytest.fixture(name="apart")
def two_stages_on_two_hosts(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Served, Host, Program]]:
    """The replica, the host of its second stage, and the agent there. This thread is on the first
    host."""
    name = f"python_mp-test-{os.getpid()}"
    monkeypatch.setenv("AGENT_TOKEN", "a token of these tests")
    monkeypatch.setenv(VARIABLE, name)
    (tmp_path / "echo" / "1").mkdir(parents=True)
    config = echo_config(tmp_path / "echo", pipeline_parallel_size=2, hosts=2)
    with hosts(2) as (a, b), ExitStack() as held:
        held.enter_context(a.entered())
        exchange = Program("python_mp.agent.exchange_server", name, "--host", a.address)
        held.callback(exchange.kill)
        exchange.says("may connect")
        cache = tmp_path / "cache"
        with b.entered():
            where = "--connect", f"{a.address}:8005", "--name", "b", "--cache", cache
            agent = Program("python_mp.agent", *where)
        held.callback(agent.kill)
        replica = held.enter_context(served(config, tmp_path))
        yield replica, b, agent


@pytest.mark.parametrize(("trouble", "times"), [("none", 50), ("slow", 10), ("losing", 200)])
def test_a_poor_link_only_takes_longer(
    apart: tuple[Served, Host, Program], trouble: str, times: int
) -> None:
    """50 ms there and 50 back; or every twentieth packet lost."""
    replica, host, _ = apart
    if trouble == "slow":
        host.delay(0.05)
    if trouble == "losing":
        host.lose(0.05)
    began = time.monotonic()
    assert values([ask(replica, n, n) for n in range(ASKED)]) == [[n, n] for n in range(ASKED)]
    took = time.monotonic() - began
    began = time.monotonic()
    for n in range(times):
        assert values([ask(replica, n)]) == [[n]]
    each = (time.monotonic() - began) / times
    print(f"{trouble}: {ASKED} at once in {took:.2f} s, one by one {each * 1e3:.1f} ms each")
    assert counted(replica, "restarts_total") == [0]


@pytest.mark.parametrize("seconds", [LEASE + 1, pytest.param(20.0, marks=pytest.mark.campaign)])
def test_beyond_a_cut_link_nothing_goes_on(
    apart: tuple[Served, Host, Program], seconds: float
) -> None:
    replica, host, agent = apart
    assert values([ask(replica, 1)]) == [[1]]
    ranks = [pid for each in children(agent.process.pid) for pid in children(each)]
    host.cut()
    began = time.monotonic()
    kept = ask(replica, 2)
    until(lambda: not any(map(alive, ranks)))
    gone = time.monotonic() - began
    until(lambda: time.monotonic() > began + seconds, 2 * seconds)
    assert not replica.replica.serves
    host.mend()
    began = time.monotonic()
    until(lambda: replica.replica.serves)
    print(f"ranks gone after {gone:.1f} s, serves {time.monotonic() - began:.1f} s after the mend")
    assert LEASE - 2 < gone < LEASE + 2
    assert kept.exception() is not None or values([kept]) == [[2]]
    assert values([ask(replica, 3)]) == [[3]]
    assert counted(replica, "restarts_total") == [1]
