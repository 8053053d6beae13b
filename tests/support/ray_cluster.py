"""A Ray cluster whose nodes stand on the hosts of `tests/support/network.py`."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from tests.support.network import Host, run
from tests.support.processes import ENVIRONMENT, until

PORT = 6379
START_SECONDS = 60.0
NOTICED_SOON = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray's head asks its hosts so often, and gives them up so soon."""


@dataclass
class Cluster:
    """Its head is on the first host."""

    hosts: Sequence[Host]
    folder: Path
    nodes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:{PORT}"

    def start(self, host: Host, *options: str) -> None:
        command = [Path(sys.executable).with_name("ray"), "start", "--block", *options]
        command += [f"--node-ip-address={host.address}", f"--temp-dir={self.folder / host.name}"]
        command += ["--num-cpus=1", "--object-store-memory=80000000"]
        with (self.folder / f"{host.name}.log").open("w") as log:
            self.nodes.append(host.start(*command, stdout=log, stderr=subprocess.STDOUT))

    def end(self) -> None:
        for host in self.hosts:
            host.kill()
        for node in self.nodes:
            node.wait()
        shutil.rmtree(self.folder)

    def kill_head(self) -> None:
        (head,) = processes(self.hosts[0], "gcs_server")
        os.kill(head, 9)


def processes(host: Host, name: str) -> list[int]:
    """Those on a host in whose commands there is such a word."""
    pids = run("ip", "netns", "pids", host.namespace).split()
    return [int(pid) for pid in pids if any(name in word for word in _command(pid))]


def _command(pid: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:3]
    except OSError:
        return []


@contextmanager
def ray_cluster(hosts: Sequence[Host], **environment: str) -> Iterator[Cluster]:
    """With authentication by token, which is in the environment within it. At its end all that runs
    on the hosts is killed."""
    cluster = Cluster(hosts, Path(tempfile.mkdtemp(prefix="ray-")))  # Short: sockets are in it.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ours = token | {"RAY_USAGE_STATS_ENABLED": "0"} | ENVIRONMENT | environment
    try:
        with mock.patch.dict(os.environ, ours):
            cluster.start(hosts[0], "--head", f"--port={PORT}", "--include-dashboard=false")
            with hosts[0].entered():
                until(lambda: _listens(hosts[0].address), START_SECONDS)
            for host in hosts[1:]:
                cluster.start(host, f"--address={cluster.address}")
            yield cluster
    finally:
        cluster.end()


def _listens(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, PORT)) == 0
