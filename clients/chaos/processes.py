"""Processes: whose they are, and how to hit no other."""

import os
import signal
from dataclasses import dataclass

import psutil


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


def descendants(pid: int) -> list[int]:
    """Everything that this process, or what it started, has started and not outlived."""
    try:
        return [each.pid for each in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
