"""Hosts for tests, of network namespaces: each has an address, and one more routes between them.

    a: eth0 10.98.0.1 ─── to-a ┐
    b: eth0 10.98.0.2 ─── to-b ┤ the switch; what it cannot deliver vanishes, and nobody is told
    c: eth0 10.98.0.3 ─── to-c ┘

    with network(2) as (a, b):
        server = b.start(sys.executable, "-m", "http.server", "--bind", b.address)
        with a.entered():           this thread, and all that it starts, stand on host a
            urlopen(f"http://{b.address}:8000")
        b.cut()                     as if the cable were pulled; b.mend() plugs it in again

It takes root. Nothing of the machine's own is touched, and nothing of ours outlives the test: names
carry our pid, and what a killed run has left goes at the next one.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from tests.support.processes import alive, until

NETNS = Path("/run/netns")
PROGRAMS = ("ip", "tc", "iptables")
_GATEWAY = "169.254.7.7"
_RELAY = Path(__file__).with_name("held_back.py")
_OURS = re.compile(r"pmp-(\d+)-\w+")
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Why there can be no hosts here; empty if there can."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=_path())]:
        return f"hosts need {', '.join(missing)} (Debian: apt-get install iproute2 iptables)"
    probe = f"pmp-{os.getpid()}-probe"
    try:
        run("ip", "netns", "add", probe)
        run("ip", "netns", "del", probe)
    except AssertionError as error:
        return f"hosts are network namespaces, which only root may make: {error}"
    return ""


def run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PATH": _path()}
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """So many hosts, at most 26. At the end all processes on them are killed."""
    _remove_leftovers()
    with ExitStack() as made:
        switch = _namespace("switch", made)
        run("ip", "-n", switch, "route", "add", "blackhole", "10.98.0.0/24")
        with standing_on(switch):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        hosts = [
            Host(name, f"10.98.0.{number}", _namespace(name, made), switch)
            for number, name in enumerate(ascii_lowercase[:count], 1)
        ]
        for host in hosts:
            made.callback(host.end_relay)
            _connect(host)
        yield hosts


@dataclass
class Host:
    name: str
    address: str
    namespace: str
    switch: str
    _lost: list[str] = field(default_factory=list)
    _relay: subprocess.Popen[str] | None = None

    @property
    def port(self) -> str:
        """The switch's end of the cable."""
        return f"to-{self.name}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread stands on the host, with the threads and processes that it starts; not what
        an older process forks for it, as multiprocessing's forkserver."""
        with standing_on(self.namespace):
            yield

    def start(self, *command: object, **how: Any) -> subprocess.Popen[str]:
        with self.entered():
            return subprocess.Popen([*map(str, command)], text=True, **how)

    def kill(self) -> None:
        """All that runs on the host, at once."""
        _kill_all(self.namespace)

    def cut(self) -> None:
        """No packet goes in or out; neither side is told."""
        for device in self._devices():
            run("ip", "-n", self.switch, "link", "set", device, "down")

    def mend(self) -> None:
        for device in self._devices():
            run("ip", "-n", self.switch, "link", "set", device, "up")
        self._lead_to(self._devices()[-1])

    def lose(self, share: float) -> None:
        """This share of the packets in either direction vanishes; 0 for none."""
        for rule in self._lost:
            self._rule("-D", rule)
        chance = f"-m statistic --mode random --probability {share}"
        self._lost = [f"{way} {self.address} {chance}" for way in ("-s", "-d")] if share else []
        for rule in self._lost:
            self._rule("-A", rule)

    def bound(self, bits_per_second: int) -> None:
        """No more than this in either direction; 0 for no bound."""
        for namespace, device in ((self.namespace, "eth0"), (self.switch, self.port)):
            shape = ["tc", "-n", namespace, "qdisc"]
            if bits_per_second:
                burst = max(16 << 10, bits_per_second // 8 // 100)
                limits = ["rate", f"{bits_per_second}bit", "burst", str(burst), "latency", "100ms"]
                run(*shape, "replace", "dev", device, "root", "tbf", *limits)
            else:
                run(*shape, "del", "dev", device, "root")

    def delay(self, seconds: float) -> None:
        """Each packet takes so much longer, in either direction; 0 for no longer."""
        if self._relay:
            self._leave_by("eth0")
            self._lead_to(self.port)
            self.end_relay()
        if seconds:
            names = "slow", f"slow-{self.name}"
            self._relay = self.start(
                sys.executable, _RELAY, *names, seconds, stdout=subprocess.PIPE
            )
            assert self._relay.stdout
            assert self._relay.stdout.readline() == "ready\n"
            run("ip", "-n", self.namespace, "link", "set", names[1], "netns", self.switch)
            run("ip", "-n", self.namespace, "link", "set", names[0], "up")
            run("ip", "-n", self.switch, "link", "set", names[1], "up")
            self._lead_to(names[1])
            self._leave_by(names[0])

    def end_relay(self) -> None:
        if self._relay:
            self._relay.kill()
            self._relay.communicate()
            self._relay = None

    def _devices(self) -> list[str]:
        """The switch's, the one in use last."""
        return [self.port, f"slow-{self.name}"] if self._relay else [self.port]

    def _lead_to(self, device: str) -> None:
        run("ip", "-n", self.switch, "route", "replace", self.address, "dev", device)

    def _leave_by(self, device: str) -> None:
        by = ["via", _GATEWAY, "onlink"] if device == "eth0" else []
        route = ["default", *by, "dev", device, "src", self.address]
        run("ip", "-n", self.namespace, "route", "replace", *route)

    def _rule(self, what: str, rule: str) -> None:
        with standing_on(self.switch):
            run("iptables", "-w", what, "FORWARD", *rule.split(), "-j", "DROP")


def _connect(host: Host) -> None:
    ends = ["netns", host.switch, "type", "veth", "peer", "name", "eth0", "netns", host.namespace]
    run("ip", "link", "add", host.port, *ends)
    for namespace, device, address in (
        (host.namespace, "eth0", host.address),
        (host.switch, host.port, _GATEWAY),
    ):
        run("ip", "-n", namespace, "address", "add", f"{address}/32", "dev", device)
        run("ip", "-n", namespace, "link", "set", device, "up")
    host._lead_to(host.port)
    host._leave_by("eth0")


def _namespace(name: str, made: ExitStack) -> str:
    namespace = f"pmp-{os.getpid()}-{name}"
    run("ip", "netns", "add", namespace)
    made.callback(_remove, namespace)
    run("ip", "-n", namespace, "link", "set", "lo", "up")
    return namespace


def _remove(namespace: str) -> None:
    _kill_all(namespace)
    run("ip", "netns", "del", namespace)


def _remove_leftovers() -> None:
    for path in NETNS.glob("pmp-*"):
        owner = _OURS.fullmatch(path.name)
        if owner and not alive(int(owner[1])):
            _remove(path.name)


def _kill_all(namespace: str) -> None:
    def killed() -> bool:
        pids = {*map(int, run("ip", "netns", "pids", namespace).split())} - {os.getpid()}
        running = [pid for pid in pids if alive(pid)]
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not running

    until(killed)


@contextmanager
def standing_on(namespace: str) -> Iterator[None]:
    """See `Host.entered`."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(NETNS / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(there)
        try:
            yield
        finally:
            _enter(before)
    finally:
        os.close(there)
        os.close(before)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
