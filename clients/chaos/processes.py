"""Processes by /proc: whose they are, and how to hit no other."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STATE, _PARENT, _STARTED = 0, 1, 19  # fields of /proc/PID/stat after the name


class HouseError(Exception):
    """The server cannot be asked or harmed from here; one sentence."""


@dataclass(frozen=True)
class Process:
    """A process and not merely its number: one that started at another time is another one."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int, ancestor: int) -> "Process":
        """Raises HouseError unless it lives and descends from `ancestor`."""
        fields = stat(pid)
        if not fields or ancestor not in ancestors(pid):
            raise HouseError(f"process {pid} is none of the server's")
        return cls(pid, int(fields[_STARTED]))

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
        fields = stat(self.pid)
        return bool(fields) and fields[_STATE] != "Z" and int(fields[_STARTED]) == self.started


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name; none if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def ancestors(pid: int) -> Iterator[int]:
    """Its parent, the parent's parent, and so on."""
    while fields := stat(pid):
        pid = int(fields[_PARENT])
        yield pid


def descendants(pid: int) -> Iterator[int]:
    """Everything that this process, or what it started, has started and not outlived."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            yield child
            yield from descendants(child)
