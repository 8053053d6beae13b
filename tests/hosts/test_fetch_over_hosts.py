"""An artifact that is fetched from another host, over a link that is cut half way."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from python_mp.wire.exchange_line import VARIABLE
from tests.hosts.conftest import Hosts
from tests.support.configs import echo_config
from tests.support.network import Host, run
from tests.support.other_hosts import QUICK, Program
from tests.support.processes import until
from tests.support.replicas import ask, served, values

SIZE = 6 << 20
RATE = 32_000_000
"""Bits a second: one and a half seconds for all of it."""


def without(folder: Path) -> list[object]:
    """For `Program`: it finds the folder empty, as on a machine that has not got it."""
    hidden = 'mount -t tmpfs none "$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", hidden, folder]


def received(host: Host) -> int:
    """Bytes, of all that came over its cable."""
    said = run(
        "ip", "netns", "exec", host.namespace, "cat", "/sys/class/net/eth0/statistics/rx_bytes"
    )
    return int(said)


def test_a_fetch_goes_on_where_the_link_was_cut(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, cache, models = f"python_mp-test-{os.getpid()}", tmp_path / "cache", tmp_path / "models"
    monkeypatch.setenv(VARIABLE, name)
    monkeypatch.setenv("AGENT_TOKEN", "a token of these tests")
    (models / "echo" / "1").mkdir(parents=True)
    (models / "echo" / "1" / "weights").write_bytes(Random(1).randbytes(SIZE))
    config = echo_config(models / "echo", pipeline_parallel_size=2, hosts=2)

    def there() -> int:
        return sum(path.stat().st_size for path in cache.rglob("weights"))

    def cut_half_way() -> None:
        until(lambda: there() > SIZE / 2)
        b.cut()
        agent.says("no word of the exchange")
        assert SIZE / 2 < there() < SIZE
        b.bound(0)
        b.mend()

    where = "--name", "b", "--cache", cache, "--connect"
    with hosts(2) as (a, b), ExitStack() as held:
        held.enter_context(a.entered())
        exchange = Program("python_mp.agent.exchange_server", name, "--host", a.address, *QUICK)
        held.callback(exchange.kill)
        exchange.says("may connect")
        b.bound(RATE)
        with b.entered():
            agent = Program("python_mp.agent", *where, f"{a.address}:8005", by=without(models))
        held.callback(agent.kill)
        cutting = held.enter_context(ThreadPoolExecutor(1)).submit(cut_half_way)
        replica = held.enter_context(served(config, tmp_path))
        cutting.result()
        assert values([ask(replica, 1)]) == [[1]]
        total = received(b)
    print(f"{total / SIZE:.2f} times the artifact's bytes came over the cable")
    assert total < 1.2 * SIZE
