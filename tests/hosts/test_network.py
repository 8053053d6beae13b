"""The hosts that other tests stand on are what these take them for."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.hosts.conftest import Hosts
from tests.support.network import NETNS, Host
from tests.support.processes import ROOT, alive, until


@contextmanager
def connected(one: Host, other: Host) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection between them."""
    with other.entered(), socket.create_server((other.address, 0)) as listener:
        with one.entered():
            near = socket.create_connection(listener.getsockname(), 10)
        far, (address, _) = listener.accept()
        assert address == one.address
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.settimeout(10)
    with near, far:
        yield near, far


def seconds_for(near: socket.socket, far: socket.socket, nbytes: int = 1) -> float:
    """There and back: a byte to answer the last of so many."""
    began, left = time.monotonic(), nbytes
    sender = threading.Thread(target=near.sendall, args=(bytes(nbytes),))
    sender.start()
    while left:
        left -= len(far.recv(left))
    sender.join()
    far.sendall(b"!")
    assert near.recv(1) == b"!"
    return time.monotonic() - began


def test_each_has_its_own_address_and_loopback(hosts: Hosts) -> None:
    with hosts(3) as (a, b, c):
        for one, other in ((a, b), (b, c), (c, a)):
            with connected(one, other) as (near, far):
                seconds_for(near, far)
        with a.entered(), socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
            socket.create_connection(address, 5).close()
            with b.entered(), pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, 5)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 5)


@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_a_cut_is_silent_and_mends(hosts: Hosts, delay: float) -> None:
    with hosts(2) as (a, b):
        b.delay(delay)
        with connected(a, b) as (near, far):
            b.cut()
            near.sendall(b"?")
            far.settimeout(0.5)
            with pytest.raises(TimeoutError):
                far.recv(1)
            near.setblocking(False)
            with pytest.raises(BlockingIOError):
                near.recv(1)  # No error either.
            b.mend()
            far.settimeout(20)
            assert far.recv(1) == b"?"


def test_a_link_takes_longer_until_it_does_not(hosts: Hosts) -> None:
    with hosts(2) as (a, b), connected(a, b) as pair:
        usual = min(seconds_for(*pair) for _ in range(5))
        b.delay(0.05)
        assert min(seconds_for(*pair) for _ in range(3)) >= 0.1
        assert seconds_for(*pair, 1 << 20) >= 0.1
        b.delay(0)
        assert min(seconds_for(*pair) for _ in range(5)) < max(10 * usual, 0.05)


def test_a_bound_rate_holds(hosts: Hosts) -> None:
    with hosts(2) as (a, b), connected(a, b) as pair:
        b.bound(8_000_000)  # A megabyte a second, but for what is in buffers.
        assert min(seconds_for(*pair, 1 << 20) for _ in range(2)) >= 0.7
        b.bound(0)
        assert min(seconds_for(*pair, 1 << 20) for _ in range(3)) < 0.5


def test_a_share_of_packets_is_lost(hosts: Hosts) -> None:
    with hosts(2) as (a, b):
        datagrams = {}
        for host in (a, b):
            with host.entered():
                datagrams[host.name] = socket.socket(type=socket.SOCK_DGRAM)
            datagrams[host.name].bind((host.address, 5000))

        def arrive() -> int:
            for _ in range(200):
                datagrams["a"].sendto(b"?", (b.address, 5000))
            datagrams["b"].settimeout(0.3)
            count = 0
            try:
                while datagrams["b"].recv(1):
                    count += 1
            except TimeoutError:
                return count

        assert arrive() == 200
        b.lose(0.25)
        assert 100 < arrive() < 195
        b.lose(1.0)
        assert arrive() == 0
        b.lose(0)
        assert arrive() == 200
        for each in datagrams.values():
            each.close()


def test_all_of_a_host_is_killed_and_nothing_is_left(hosts: Hosts) -> None:
    before = {path.name for path in NETNS.glob("*")}
    with suppress(ZeroDivisionError), hosts(2) as (a, b):
        sleepers = [host.start("sleep", "1000") for host in (a, b)]
        a.kill()
        assert sleepers[0].wait(10) == -signal.SIGKILL
        assert alive(sleepers[1].pid)
        raise ZeroDivisionError  # A test that fails.
    assert sleepers[1].wait(10) == -signal.SIGKILL
    assert {path.name for path in NETNS.glob("*")} == before


def test_what_a_killed_run_left_goes_at_the_next(hosts: Hosts) -> None:
    code = """if True:
        import os, subprocess
        from tests.support.network import network
        with network(1) as (a,):
            sleeper = a.start("sleep", "1000", stdout=subprocess.DEVNULL)
            print(os.getpid(), sleeper.pid, flush=True)
            os.abort()
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGABRT
    owner, sleeper = map(int, done.stdout.split())
    assert alive(sleeper)
    with hosts(0):
        until(lambda: not alive(sleeper))
        assert not list(NETNS.glob(f"pmp-{owner}-*"))
