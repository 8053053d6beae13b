"""Who is let in among the hosts of a replica, who is not, and what the latter can do."""

import os
import re
import shutil
import socket
import struct
from contextlib import ExitStack
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from python_mp.agent.link import GREETING, Link
from python_mp.agent.versions import PACKAGE
from python_mp.wire.message import Kind, Message
from tests.support.other_hosts import QUICK, Hosts, Program, certificate, echo, hosts
from tests.support.processes import ENVIRONMENT
from tests.support.replicas import LIMIT, ask, counted, served, values

AGENT = "python_mp.agent"


def test_who_is_not_wanted_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_TOKEN", "a token of these hosts")
    with hosts(tmp_path, "b") as made:
        made.agent("b").says("an agent named b is connected already")
        monkeypatch.setenv("AGENT_TOKEN", "a token of other hosts")
        made.agent("c").says("has another token")
        made.exchange.says("is refused: .*has another token")
        monkeypatch.delenv("AGENT_TOKEN")
        made.agent("d").says("has another token")
        other = made.started(AGENT, "--connect", "192.0.2.1:8005", "--name", "e")
        other.says("agent: hosts need one token of at least 16 characters")
        assert [name for name in made.agents if made.agents[name].process.poll() is None]


@pytest.mark.parametrize("what", ["code", "torch"])
def test_what_differs_is_told_on_both_sides(tmp_path: Path, what: str) -> None:
    """An agent whose package has one more module, or beside another torch."""
    there = tmp_path / "there"
    shutil.copytree(PACKAGE, there / "python_mp", ignore=shutil.ignore_patterns("__pycache__"))
    if what == "code":
        (there / "python_mp" / "more.py").touch()
    other = there / "torch-1.0.dist-info"
    if what == "torch":
        other.mkdir()
        (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    found = os.pathsep.join([str(there), ENVIRONMENT["PYTHONPATH"]])
    with hosts(tmp_path) as made:
        where = "--connect", f"127.0.0.1:{made.port}", "--name", "b"
        agent = Program(AGENT, *where, PYTHONPATH=found)
        try:
            said = rf"the agent has {what} \S+ \(here \S+\): install the same release"
            agent.says(f"the exchange refuses this agent: {said}")
            made.exchange.says(f"a connection from 127.0.0.1 is refused: {said}")
        finally:
            agent.kill()


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.campaign)])
def test_hostile_peers_change_nothing(tmp_path: Path, count: int) -> None:
    """So many messages: random ones, ones that say they are huge, ones that were overheard, ones
    that would be quoted, and connections on which nothing is said, or that are reset."""
    random = Random(1)
    with hosts(tmp_path, "b") as two, served(echo(tmp_path), tmp_path) as replica:
        pid = two.exchange.process.pid
        _attack(two.port, random, 500)
        before = _resident(pid)
        silent = [socket.create_connection(("127.0.0.1", two.port)) for _ in range(40)]
        _attack(two.port, random, count)
        assert values([ask(replica, n) for n in range(9)]) == [[n] for n in range(9)]
        assert _resident(pid) < before + (8 << 20)
        assert counted(replica, "restarts_total") == [0]
        for each in silent:
            each.close()
        assert two.exchange.process.poll() is None
    assert len(two.exchange.lines) < 30
    assert not re.search("Traceback|noise", "\n".join(two.exchange.lines))


def _attack(port: int, random: Random, count: int) -> None:
    """Messages, some to a connection, until it is closed."""
    overheard = b""
    while count > 0:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.settimeout(LIMIT)
            try:
                overheard = peer.recv(GREETING)
                for message in random.sample(_messages(random, overheard), 3):
                    count -= 1
                    peer.sendall(message)
                if not random.randrange(4):  # It is reset when it is closed.
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    continue
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(GREETING):
                    pass
            except OSError:
                pass


def _messages(random: Random, overheard: bytes) -> list[bytes]:
    huge = (0xFFFFFFFF).to_bytes(4, "little") + random.randbytes(60)
    cut = overheard[: random.randrange(len(overheard) + 1)]
    quoted = framed(Message(Kind.REFUSED, text=f"noise {random.random()}"))
    halved = framed(Message(Kind.HELLO, text='{"said": "\\ud800", "proof": ""}'))
    return [random.randbytes(random.randrange(1, 200)), huge, overheard, cut, quoted, halved]


def framed(message: Message) -> bytes:
    written: list[bytes] = []
    writer = SimpleNamespace(is_closing=lambda: False, write=written.append)
    Link(SimpleNamespace(), writer).send(0, message)  # type: ignore[arg-type]
    return b"".join(written)


def _resident(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_connections_are_encrypted_where_that_is_asked_for(tmp_path: Path) -> None:
    """Both show a certificate; who shows none, or speaks plainly, is not let in."""
    signed, key = certificate(tmp_path)
    own = "--tls-certificate", signed, "--tls-key", key
    with ExitStack() as held:
        made_hosts = Hosts(tmp_path, held, (*QUICK, *own, "--tls-client-ca", signed))
        made_hosts.connected("b", "--tls-ca", signed, *own)
        made_hosts.agent("c").says("the exchange refuses this agent|cannot be reached")
        alone = made_hosts.agent("d", "--tls-ca", signed)
        alone.says("the exchange refuses this agent|cannot be reached|broke")
        with served(echo(tmp_path), tmp_path) as replica:
            assert values([ask(replica, n) for n in range(9)]) == [[n] for n in range(9)]
