"""Ranks on other hosts, as a front sees them: by way of the exchange on its own host."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack, suppress
from dataclasses import asdict
from signal import SIGKILL
from typing import Any

from ...machine.vital import Vital
from ...model.rank_spec import RankSpec, Source
from ...wire import exchange_line
from ...wire.exchange_line import End, Vitals
from ...wire.sockets import Connection, is_of_this_user
from .process import describe, wait_all

_ANSWER_SECONDS = 5.0
_END_SECONDS = 1.0


class HostsMissing(Exception):
    """There are too few other hosts now; the text says what is missing."""


class Hosts:
    """A generation's line to the exchange. When it is closed, its ranks on other hosts are ended.

    Args:
        number: other hosts that are needed, not none.

    Raises:
        HostsMissing: there are fewer, or no exchange.
        OSError: the kernel has no descriptor to give.
    """

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            said = self._ask(number)
        except BaseException:
            self._socket.close()
            raise
        self.leader = str(said["leader"])
        """The address at which they reach this host."""
        self._hosts: list[tuple[str, str]] = [(name, at) for name, at in said["hosts"]]

    def name(self, host: int) -> str:
        """Of one by its number in the layout, from 1 on."""
        return self._hosts[host - 1][0]

    def address(self, host: int) -> str:
        """0 is this host."""
        return self._hosts[host - 1][1] if host else self.leader

    def order(self, order: dict[str, Any], descriptors: list[int] | None = None) -> None:
        """Raises OSError where the exchange is gone."""
        socket.send_fds(self._socket, [json.dumps(order).encode()], descriptors or [])

    def close(self) -> None:
        self._socket.close()

    def _ask(self, number: int) -> dict[str, Any]:
        try:
            _connect(self._socket)
            self._socket.send(json.dumps({"hosts": number}).encode())
            answer = self._socket.recv(exchange_line.MAX_ORDER)
        except (ConnectionError, TimeoutError):
            answer = b""
        if not answer:
            raise HostsMissing("the process to which agents connect, on this host, is not there")
        said = dict(json.loads(answer))
        if "missing" in said:
            raise HostsMissing(str(said["missing"]))
        return said


def announce(source: Source) -> None:
    """Has other hosts begin to fetch and import what ranks of this model need. Where there is no
    exchange nothing happens: who needs it finds that out."""
    missing = suppress(OSError, HostsMissing)
    with missing, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        _connect(line)
        line.send(json.dumps({"expect": source}).encode())


def _connect(line: socket.socket) -> None:
    """To the exchange. Raises HostsMissing or OSError."""
    line.settimeout(_ANSWER_SECONDS)
    line.connect(exchange_line.address(os.environ.get(exchange_line.VARIABLE, "")))
    if not is_of_this_user(line):
        raise HostsMissing("the process to which agents connect is another user's")


class OtherRank:
    """A rank on another host; as `RankProcess`, but what it asks for takes its time there."""

    def __init__(
        self, hosts: Hosts, spec: RankSpec, connection: Connection, fds: list[int]
    ) -> None:
        """
        Args:
            fds: its end of the connection, the arena, and the file for stacks.
        """
        self.rank = spec.rank
        self.host = hosts.name(spec.host)
        self.connection = connection
        self.is_reaped = False
        self._hosts = hosts
        self._end: End | None = None
        with ExitStack() as held:
            self._vitals = Vitals(os.memfd_create("python_mp-vitals", os.MFD_CLOEXEC))
            held.callback(os.close, self._vitals.fd)
            self.ended_fd, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            held.callback(os.close, self.ended_fd)
            try:
                order = {"start": spec.rank, "spec": asdict(spec)}
                hosts.order(order, [*fds, self._vitals.fd, theirs])
            finally:
                os.close(theirs)
            self._held = held.pop_all()

    @property
    def pid(self) -> int:
        return self._vitals.pid()

    def vital(self) -> Vital:
        return self._vitals.read()

    def ask_for_stacks(self) -> None:
        self._tell("stacks")

    def kill(self) -> None:
        if not self.is_reaped:
            self._tell("kill")

    def close_connection(self) -> None:
        self.connection.close()

    def reap(self, timeout: float = _END_SECONDS, mercy: float = _END_SECONDS) -> int | None:
        """Its exit code, or minus the signal's number; None if nobody knows it."""
        if not self.is_reaped:
            wait_all([self], timeout)
            self.kill()
            wait_all([self], mercy)
            self._end = self._read_end()
            self.is_reaped = True
        return self._end.code if self._end else None

    def fate(self) -> tuple[str, bool]:
        """How it ended, and whether that came from outside."""
        code = self.reap()
        if self._end and self._end.lost:
            return self._end.lost, True
        return f"rank {self.rank} on host {self.host} {describe(code)}", code == -SIGKILL

    def close(self) -> None:
        self.is_reaped = True
        self.close_connection()
        self._held.close()

    def _read_end(self) -> End:
        said = b""
        with suppress(BlockingIOError):  # It cannot be ended.
            said = os.read(self.ended_fd, 1 << 12)
        return End.decode(said)

    def _tell(self, what: str) -> None:
        with suppress(OSError):  # The exchange is gone, and with it the rank.
            self._hosts.order({what: self.rank})
