"""Processes: whose they are, and how to hit no other."""

import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import psutil

AGENT = "python_mp.agent"
"""The module, in the command line of an agent."""


class ChaosError(Exception):
    """The server cannot be asked or harmed from here; one sentence."""


@dataclass(frozen=True)
class Process:
    """A process and not merely its number: one that started at another time is another one."""

    known: psutil.Process

    @classmethod
    def of(cls, pid: int, ancestor: int) -> "Process":
        """Raises ChaosError unless it lives and descends from `ancestor`."""
        if ancestor not in ancestors(pid):
            raise ChaosError(f"process {pid} is none of the server's")
        return cls(psutil.Process(pid))

    @property
    def pid(self) -> int:
        return self.known.pid

    def send(self, number: signal.Signals) -> bool:
        """False if it has ended. The kernel holds its number while the handle is open."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.lives:
                return False
            signal.pidfd_send_signal(handle, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)

    @property
    def lives(self) -> bool:
        return self.known.is_running() and state(self.pid) != psutil.STATUS_ZOMBIE


def state(pid: int) -> str:
    """One of psutil's; "dead" if there is no such process."""
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD


def ancestors(pid: int) -> list[int]:
    """Its parent, the parent's parent, and so on; none if there is no such process."""
    try:
        return [each.pid for each in psutil.Process(pid).parents()]
    except psutil.NoSuchProcess:
        return []


def agent_of(pid: int, host: str) -> int | None:
    """The agent of that name from which a rank descends; None if that is no process of this
    machine: here the same number is another process's, or nobody's."""
    for each in ancestors(pid):
        with suppress(psutil.Error):
            command = psutil.Process(each).cmdline()
            if AGENT in command and _name(command) == host:
                return each
    return None


def _name(command: list[str]) -> str:
    """An agent's: what `--name` says, else its host's."""
    for option, value in pairwise([*command, ""]):
        if option == "--name" or option.startswith("--name="):
            return option.partition("=")[2] or value
    return socket.gethostname()


def descendants(pid: int) -> list[int]:
    """Everything that this process, or what it started, has started and not outlived."""
    try:
        return [each.pid for each in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
